"""`manage.py settings`: every setting with its default, as a table, as `.env.example` or as documentation; or what some of them
are set to.
"""

from __future__ import annotations

import click
import orjson

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import SECTIONS, Setting, load_settings, settings_of
from secure_llm_proxy.settings.registry import as_text


@click.command(name="settings")
@click.option("--format", "form", type=click.Choice(["markdown", "env", "json"]), default="markdown", show_default=True)
@click.option(
    "--value",
    "names",
    metavar="NAME",
    multiple=True,
    help="Print NAME=VALUE as it is in force here instead. May be repeated; no secrets.",
)
def settings(form: str, names: tuple[str, ...]) -> None:
    """Print every setting: docs/configuration.md and .env.example are made of this."""
    if names:
        values = {name: _value(name) for name in names}
        lines = "\n".join(f"{name}={value}" for name, value in values.items())
        click.echo(orjson.dumps(values).decode() if form == "json" else lines)
    elif form == "json":
        told = [
            {"name": s.name, "synonyms": s.synonyms, "default": s.shown_default, "description": s.description}
            for section in SECTIONS.values()
            for s in settings_of(section)
        ]
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    else:
        click.echo(env_example() if form == "env" else configuration_page(), nl=False)


def _value(name: str) -> str:
    """As one would write it in `.env`. Raises `SettingsError` where nothing could start with the settings."""
    for section, described in ((section, s) for section, of in SECTIONS.items() for s in settings_of(of)):
        if name in {described.name, *described.synonyms}:
            if described.secret:
                raise OperatorError(f"{name} is a secret, which is never shown")
            return as_text(getattr(getattr(load_settings(), section), described.field))
    raise OperatorError(f"{name} is not a setting; manage.py settings lists them")


def env_example() -> str:
    """`.env.example`: every setting with its default, commented out, since every default works."""
    lines = [
        "# Every setting of Secure LLM Proxy with its default. Copy what you change to .env.",
        "# Made by: manage.py settings --format env",
    ]
    for title, section in SECTIONS.items():
        lines += ["", f"# --- {title}: {_first_line(section.__doc__)}"]
        for setting in settings_of(section):
            lines += [f"# {setting.description}", *_differences(setting), f"#{setting.name}={_env_default(setting)}"]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Made by `manage.py settings`; a test holds this page, `.env.example` and the code together.",
        "",
        "Settings come from, the later winning: `.env` in the working directory (or the file named by `ENV_FILE`),",
        "systemd's credentials directory (files named like the setting, in lower case), the environment. All mistakes are",
        "reported together, by name, and nothing starts. A name in `.env` that is not a setting is a mistake, and so is a",
        "near miss of a setting in the environment; the message says which setting was probably meant.",
        "",
        "`FLASK_ENV=production` is the strict profile: it has its own defaults (right column), wants strong secrets and a",
        "provider, and refuses relaxed settings. Lists are separated by commas. An empty value counts as not set; `none` means",
        "nothing, where a list or a path may be nothing.",
        "",
        "A running server takes changed settings on SIGHUP, but for `BIND`, `HOST`, `PORT`, `INSTANCE_DIR`, `DATABASE_URL`,",
        "`GRACEFUL_TIMEOUT_S`, those of the audit log, and whatever stands in its environment: these count from the next start, and",
        "its log names those that changed. Wrong settings leave the running ones in force.",
    ]
    for title, section in SECTIONS.items():
        lines += [
            "",
            f"## {title.capitalize()}",
            "",
            _first_line(section.__doc__),
            "",
            "| setting | default | in production | meaning |",
            "|---|---|---|---|",
        ]
        for setting in settings_of(section):
            production = as_text(setting.production) if setting.production != setting.default else "same"
            names = f"`{setting.name}`" + "".join(f"<br>`{other}`" for other in setting.synonyms)
            secret = " (secret)" if setting.secret else ""
            lines.append(
                f"| {names} | {_cell(setting.shown_default)} | {_cell(production)} | {setting.description}{secret} |"
            )
    return "\n".join(lines) + "\n"


def _env_default(setting: Setting) -> str:
    return "" if " " in setting.shown_default else setting.shown_default


def _differences(setting: Setting) -> list[str]:
    lines = []
    if setting.production != setting.default:
        lines.append(f"# In production: {as_text(setting.production)}")
    if " " in setting.shown_default:
        lines.append(f"# Default: {setting.shown_default}")
    if setting.synonyms:
        lines.append(f"# Also: {', '.join(setting.synonyms)}")
    return lines


def _cell(text: str) -> str:
    if not text:
        return "–"  # noqa: RUF001  a table cell without a value
    return text if " " in text or text == "same" else f"`{text}`"


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]
