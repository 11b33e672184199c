"""`~` and `$NAME` in the paths that a user writes: in a spec, in RAYLT_ROOT, behind --root.

They are replaced once, where the words are read. What a store holds has been through this, and is taken as it stands.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from string import Template

from raylt.errors import MASK, has_secret

_SCHEMES = "file|s3|gs|gcs|hdfs|viewfs|abfs|abfss"


def expanded(path: str) -> str:
    """A path or URI with `~`, `$NAME` and `${NAME}` replaced; `$$` is a dollar sign.

    Raises `LookupError`, in words, for a variable that is not set or empty, and for a user there is not.
    """
    try:
        path = Template(path).substitute({name: value for name, value in os.environ.items() if value})
    except KeyError as error:
        raise LookupError(f"names the variable {error.args[0]}, which is not set") from None
    except ValueError:
        raise LookupError("has a $ that begins no variable") from None
    if not path.startswith("~"):  # a Path would take the second slash from s3://
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise LookupError(f"names the home of a user that is not known here, {path.partition('/')[0]}") from None


EXPECTED = "a variable that is set ($$ for a dollar sign, ./~ for a folder called ~)"


def literal(path: str) -> str:
    """The text that `expanded` turns into `path` again."""
    return ("./" if path.startswith("~") else "") + path.replace("$", "$$")


def root_problem(root: str) -> tuple[str, str] | None:
    """What is wrong with the words for a store that would be taken for another place, and what would be right."""
    right = "a folder, or a URI such as s3://bucket/folder"
    if not root.strip():
        return "is empty", right
    if match := re.match(rf"({_SCHEMES}):(//)?(.*)", root, re.IGNORECASE):
        scheme, slashes, rest = match.groups()
        if not slashes or scheme != scheme.lower():
            start = "file:///" if scheme.lower() == "file" else f"{scheme.lower()}://"
            return "is no URI", f"for example {start}{rest.lstrip('/')}"
    if "://" not in root:
        return None
    if not root.isprintable():
        return "has control characters, which a URI cannot have", right
    if "#" in root:
        return "has a #, behind which a URI is cut off", "%23 for it" if root.startswith("file:") else "a name without #"
    options = root.partition("?")[2]
    if "?" in root and (root.startswith("file:") or not all("=" in option for option in options.split("&"))):
        return "has a ?, behind which a URI's options stand", "%3F for it" if root.startswith("file:") else "a name without ?"
    return None


CREDENTIALS_ADVICE = "credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or from ~/.aws"


def has_credentials(uri: str) -> bool:
    """Whether a URI carries a password, a token or a server's user name, which would then stand in specs, logs and runs."""
    scheme, mark, rest = uri.partition("://")
    user, at, _ = re.split(r"[/?#]", rest)[0].rpartition("@")
    is_named = bool(mark and at) and user != MASK  # which stands in specs that older stores keep
    return has_secret(uri) or (is_named and (":" in user or scheme in ("s3", "http", "https")))  # abfs://container@account
