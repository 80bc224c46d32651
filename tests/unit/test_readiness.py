# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What real consoles say, and what the kit makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmtests.readiness import (
    LIMITS,
    ConsoleFile,
    ConsoleReader,
    Doom,
    MachineStuck,
    Progress,
    Stage,
    last_lines,
    limits,
    may_have_sshd,
    plain,
)

# Recorded from QEMU 10 with a trixie guest; long lines shortened.
DIRECT = (
    "[    0.000000] Linux version 6.12.107+deb13-cloud-amd64 (debian-kernel@lists.debian.org)\r\n"
    "[    0.079316] Kernel command line: console=ttyS0 rw loglevel=6 systemd.show_status=1\r\n"
    "[    0.082436] random: crng init done\r\n"
    "[    2.957813] bootc-initrd: start\r\n"
    "[    3.055365] virtio_blk virtio1: [vda] 3145728 512-byte logical blocks\r\n"
    "SELinux:  Could not open policy file <= /etc/selinux/default/policy/policy.34\r\n"
    "\x1b[!p\x1b]104\x07\x1b[?7h\r\n\x1b[0;1;39mWelcome to \x1b[0m\x1b[1m"
    "Debian GNU/Linux 13 (trixie)"
    "\x1b[0m\x1b[0;1;39m!\x1b[0m\r\n\r\r\n"
    "[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mpaths.target\x1b[0m - Path Units.\r\r\n"
    "\r\r\nDebian GNU/Linux 13 vm ttyS0\r\n\r\nvm login: "
)
UEFI = (
    '\x1b[2J\x1b[01;01H\x1b[=3h\x1b[2J\x1b[01;01HBdsDxe: loading Boot0001 "UEFI Misc Device" from '
    'PciRoot(0x0)/Pci(0x1,0x1)\r\nBdsDxe: starting Boot0001 "UEFI Misc Device"\r\n'
    "EFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID device path\r\n"
    "[    0.000000] Linux version 6.12.107+deb13-cloud-amd64\r\n"
    "\x1b[0;1;39mWelcome to \x1b[0m\x1b[1mDebian GNU/Linux 13 (trixie) dracut-106-6 (Initramfs)"
    "\x1b[0m\x1b[0;1;39m!\x1b[0m\r\n"
)
PANIC = (
    '[    1.000000] VFS: Cannot open root device "" or unknown-block(0,0): error -6\r\n'
    "[    1.100000] Kernel panic - not syncing: VFS: Unable to mount root fs on "
    "unknown-block(0,0)\r\n"
)


def stages(text: str, size: int = 1) -> list[Stage]:
    """The stages as they are reached when `text` arrives in pieces of `size`."""
    reader = ConsoleReader()
    seen = [reader.stage]
    for start in range(0, len(text), size):
        reader.feed(text[start : start + size])
        if reader.stage is not seen[-1]:
            seen.append(reader.stage)
    return seen


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_direct_boot_reaches_userspace_in_pieces_of_any_size(size: int) -> None:
    seen = stages(DIRECT, size)
    assert seen[-1] is Stage.USERSPACE
    assert seen == sorted(seen, key=lambda stage: stage.rank)


def test_direct_boot_shows_each_stage() -> None:
    assert stages(DIRECT) == [Stage.PROCESS, Stage.KERNEL, Stage.INITRD, Stage.USERSPACE]


def test_uefi_boot_is_in_the_initrd_when_dracut_greets() -> None:
    assert stages(UEFI) == [Stage.PROCESS, Stage.FIRMWARE, Stage.KERNEL, Stage.INITRD]


def test_login_prompt_is_seen_without_its_newline() -> None:
    reader = ConsoleReader()
    reader.feed("\r\nvm login: ")
    assert reader.stage is Stage.USERSPACE
    assert reader.prompt


@pytest.mark.parametrize(
    "line",
    [
        "[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mssh.service\x1b[0m - OpenBSD Secure Shell",
        "[  OK  ] Started sshd.service - OpenSSH server daemon.",
        "[  OK  ] Listening on sshd.socket - OpenSSH Server Socket.",
    ],
)
def test_the_start_of_an_sshd_is_seen(line: str) -> None:
    reader = ConsoleReader()
    reader.feed("         Starting ssh.service - OpenBSD Secure Shell server...\r\n")
    assert not reader.sshd
    reader.feed(f"{line}\r\n")
    assert reader.sshd


def test_nobody_knocks_while_the_console_tells_what_starts(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_text("[    0.000000] Linux version 6.12\r\nWelcome to Debian GNU/Linux 13!\r\n")
    console, progress = ConsoleFile(path), Progress()
    console.poll()
    progress.reach(console.reader.stage, console.heard)
    assert not may_have_sshd(console, progress, 3.0, console.heard + 4)
    assert may_have_sshd(console, progress, 3.0, console.heard + 6), "a silent console"
    console.heard += 14
    assert not may_have_sshd(console, progress, 3.0, console.heard)
    assert may_have_sshd(console, progress, 1.0, console.heard), "longer than any userspace takes"
    assert may_have_sshd(console, progress, 3.0, console.heard + 2), "that long when emulated"


def test_a_login_prompt_or_no_console_at_all_lets_knock(tmp_path: Path) -> None:
    console, progress = ConsoleFile(tmp_path / "none"), Progress()
    console.poll()
    assert not may_have_sshd(console, progress, 1.0, console.heard + 1)
    assert may_have_sshd(console, progress, 1.0, console.heard + 6)
    console.reader.feed("vm login: ")
    assert may_have_sshd(console, progress, 1.0, console.heard)


@pytest.mark.parametrize(
    ("text", "doom"),
    [
        (PANIC, Doom.PANIC),
        ("You are in emergency mode. After logging in, type\r\n", Doom.EMERGENCY),
        ('Generating "/run/initramfs/rdsosreport.txt"\r\n', Doom.EMERGENCY),
        ("Cannot open access to console, the root account is locked.\r\n", Doom.EMERGENCY),
        ("BdsDxe: failed to load Boot0001 from PciRoot(0x0): Access Denied\r\n", Doom.DENIED),
        ("boot.c: Error loading \\EFI\\Linux\\debian.efi: Access denied\r\n", Doom.DENIED),
        ("BdsDxe: No bootable option or device was found.\r\n", Doom.NO_BOOT),
        ("No bootable device.\r\n", Doom.NO_BOOT),
    ],
)
@pytest.mark.parametrize("size", [3, 10_000])
def test_what_cannot_heal_is_recognised(text: str, doom: Doom, size: int) -> None:
    reader = ConsoleReader()
    for start in range(0, len(text), size):
        reader.feed(text[start : start + size])
    assert reader.doom is doom
    assert reader.doom_line in plain(text)


def test_good_boots_are_not_doomed() -> None:
    for text in (DIRECT, UEFI):
        reader = ConsoleReader()
        reader.feed(text)
        assert reader.doom is None


def test_plain_removes_terminal_control() -> None:
    assert plain("\x1b[0;1;39mWelcome\x1b[0m to\x1b]104\x07 x\x1b[6n\r\n") == "Welcome to x\n"
    assert plain("[\x1b[0;32m  OK  \x1b[0m] Reached") == "[  OK  ] Reached"


def test_console_file_is_followed_from_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "console"
    console = ConsoleFile(path)
    console.poll()  # not there yet
    path.write_text(DIRECT[:100], newline="")
    console.poll()
    early = console.reader.stage
    with path.open("a", newline="") as file:
        file.write(DIRECT[100:])
    console.poll()
    assert (early, console.reader.stage) == (Stage.KERNEL, Stage.USERSPACE)
    after = ConsoleFile(path, offset=path.stat().st_size)
    after.poll()
    assert after.reader.stage is Stage.PROCESS


def test_progress_keeps_each_stage_and_starts_its_clock_anew() -> None:
    progress = Progress(began=100.0)
    assert progress.reach(Stage.KERNEL, 102.0)
    assert not progress.reach(Stage.FIRMWARE, 103.0)
    assert not progress.reach(Stage.KERNEL, 104.0)
    assert progress.stuck_for(142.0) == 40.0
    assert progress.times == {"process": 0.0, "kernel": 2.0}


def test_a_stuck_machine_says_stage_time_and_last_lines(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_text("".join(f"line {n}\r\n" for n in range(50)) + "\x1b[0mend", newline="")
    error = MachineStuck("m", Stage.INITRD, 40.4, last_lines(console), log=console)
    lines = str(error).splitlines()
    assert lines[0] == "m: stuck in initrd for 40 s"
    assert len(lines) == 22
    assert lines[2] == "  | line 31"
    assert lines[-1] == "  | end"
    assert error.hint is not None
    assert str(console) in error.hint


def test_a_doomed_machine_says_why() -> None:
    error = MachineStuck("m", Stage.KERNEL, 3.1, "", doom=Doom.PANIC, detail="VFS: no root")
    assert str(error) == (
        "m: the guest's kernel panicked (in stage kernel, after 3.1 s): VFS: no root"
    )


def test_last_lines_of_a_console_that_is_not_there(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none") == ""


def test_every_stage_has_a_limit_and_all_scale() -> None:
    assert set(LIMITS) == set(Stage)
    assert limits(2.0)[Stage.INITRD] == 2 * LIMITS[Stage.INITRD]


def test_a_busy_host_makes_the_limit_last_longer() -> None:
    progress = Progress(began=0.0)
    progress.spend(10.0, 0.2)
    assert progress.spent == pytest.approx(2.0)
    progress.reach(Stage.KERNEL, 10.0)
    assert progress.spent == 0.0
    busy = str(MachineStuck("m", Stage.KERNEL, 9.0, "", speed=0.2))
    assert "busy" in busy
    assert "20%" in busy


@pytest.mark.parametrize("size", [1, 1000])
def test_while_shutting_down_only_a_new_boot_counts(size: int) -> None:
    reader = ConsoleReader(shutting_down=True)
    text = "[  OK  ] Stopped ssh\r\nvm login: [   93.100000] reboot: Restarting system\r\n"
    for start in range(0, len(text), size):
        reader.feed(text[start : start + size])
    assert (reader.stage, reader.prompt) == (Stage.PROCESS, False)
    reader.feed(DIRECT[:100])
    assert not reader.shutting_down
    assert reader.stage == Stage.KERNEL
