"""Files in folders where others may write, as the temporary one: read only where nobody else can have written them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_own(path: Path) -> str | None:
    """The text of a file that this user alone can have written; None where there is none such.

    Not believed are another user's file, one that others may write, a link and a second name of a file. It is the open file
    that is asked, so none can be put in its place in between. Whose the folder is then does not matter, and must not: Ray
    itself opens its own to everybody, so that several users may share it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            return file.read() if _is_own(os.fstat(descriptor)) else None
    except (OSError, ValueError):
        return None


def _is_own(file: os.stat_result) -> bool:
    is_mine = stat.S_ISREG(file.st_mode) and file.st_uid == os.geteuid() and file.st_nlink == 1
    group_writes = bool(file.st_mode & stat.S_IWGRP) and not _is_mine_alone(file.st_gid)
    return is_mine and not file.st_mode & stat.S_IWOTH and not group_writes


def _is_mine_alone(gid: int) -> bool:
    """Whether a group has no other user in it: many systems give each user one, and let it write what the user makes."""
    import grp
    import pwd

    try:
        me, members = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid).gr_mem
    except KeyError:
        return False
    others = {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid} | set(members)
    return gid == me.pw_gid and others <= {me.pw_name}
