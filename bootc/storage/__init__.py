# SPDX-License-Identifier: Apache-2.0 OR MIT
"""containers-storage, the image store of podman, Buildah and skopeo, read without them.

* `options` finds the stores as podman does, `reference` reads `containers-storage:` names;
* `store` and `records` know a store's folders and documents, `locks` its lock files;
* `tarsplit`, `crc64` and `layer` turn a layer's folder back into its exact tar;
* `opener` opens the files of other user ids where we are not root;
* `source` is an image that can be pulled.

Nothing here ever writes into a store.
"""
