"""Names that a folder may have, each of which means something in another syntax: URIs, shells, SQL, templates."""

from __future__ import annotations

NAMES = (
    "job%2Fmain", "100%", "%41", "a?b", "a?timeout=1", "a#b", "a b", " a ", "ä", "a+b", "a&b=c", "a;b", "a:b", "a@b", "u:p@h",
    "'", '"', "`", "$x", "~", "~nobody", "{x}", "{SCHEMA_VERSION}", "[x]", "<x>", "a\nb", "a\tb", "a\\b", "*", "-x", "file:",
    "s3:", "a|b", "a,b", "!", "=", "x" * 200,
)  # fmt: skip
