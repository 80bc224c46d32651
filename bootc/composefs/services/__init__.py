# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What `cfsctl varlink` serves: org.composefs.Repository and org.composefs.Oci.

The interface files lie here and are served as they are; docs/varlink-composefs.md is for people.
"""
