"""Prints `docs/settings.md` from the settings themselves."""

from server.settings import Settings


def page() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = "the demo model" if name == "model" else f"`{default}`" if str(default) else "empty"
        rows.append(f"| `HONE_{name.upper()}` | {shown} | {' '.join((field.description or '').split())} |")
    return "\n".join(
        [
            "# Settings",
            "",
            "Every setting is an environment variable; the common ones are also options of `hone serve`. This page is",
            "made from `server/settings.py` by `python -m tests.settings_table > docs/settings.md`.",
            "",
            "| variable | default | what it does |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
