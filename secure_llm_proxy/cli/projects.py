"""Commands about organisations, projects and their members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click
from sqlalchemy.orm import Session

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import as_cell, confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.foundation.identifiers import new_organisation_id, new_project_id
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, Organisation, Project, ProjectChanges, ProjectStatus

Command = TypeVar("Command", bound=Callable[..., Any])

_prefix_option = click.option("--prefix", help="Only those whose name begins so.")


def _project_argument(command: Command) -> Command:
    """PROJECT, and the organisation that tells two of one name apart."""
    named = click.option("--organisation", help="Whose project it is, where several have that name.")(command)
    return click.argument("project")(named)


@click.group("projects")
def projects() -> None:
    """Projects: what keys are made for, and who may have keys in them."""


@projects.command("list")
@click.option("--organisation", help="Only projects of this organisation.")
@_prefix_option
@click.option("--status", type=click.Choice([status.value for status in ProjectStatus]), help="Only these.")
@json_option
@pass_context
def list_projects(
    context: CommandContext, organisation: str | None, prefix: str | None, status: str | None, *, as_json: bool
) -> None:
    """List projects."""

    def read(session: Session) -> tuple[list[Project], dict[str, str]]:
        known = {found.id: found.name for found in context.organisations.list_organisations(session)}
        its_id = _organisation_id(context, session, organisation)
        listed = context.organisations.list_projects(session, organisation_id=its_id, name_prefix=prefix, status=status)
        return listed, {str(key): name for key, name in known.items()}

    listed, names = context.database.run(read)
    if as_json:
        show_json([asdict(project) for project in listed])
        return
    show_table(
        ("name", "organisation", "status", "rpm", "created", "id"),
        [(p.name, names[p.organisation_id], p.status, p.requests_per_minute, p.created_at, p.id) for p in listed],
        empty="There is no such project; make one with: manage.py projects create NAME",
    )


@projects.command("create")
@click.argument("name")
@click.option("--organisation", help="Whose project it is; by default the first organisation's.")
@click.option("--rpm", "requests_per_minute", type=int, help="Requests per minute of keys without a rate of their own.")
@json_option
@pass_context
def create_project(
    context: CommandContext, name: str, organisation: str | None, requests_per_minute: int | None, *, as_json: bool
) -> None:
    """Make a project without members."""
    project_id = new_project_id()
    made = context.change(
        "project.create",
        project_id,
        {"rpm": requests_per_minute},
        {"name": name, "organisation": organisation},
        lambda session: context.organisations.create_project(
            session,
            organisation=organisation or DEFAULT_ORGANISATION_ID,
            name=name,
            requests_per_minute=requests_per_minute,
            project_id=project_id,
        ),
    )
    _show_project(made, "is made", as_json=as_json)


@projects.command("rename")
@_project_argument
@click.argument("name")
@json_option
@pass_context
def rename_project(
    context: CommandContext, project: str, name: str, organisation: str | None, *, as_json: bool
) -> None:
    """Give a project another name."""
    found = _find(context, project, organisation)
    _show_project(_change(context, "project.rename", found, {"name": name}), "is renamed", as_json=as_json)


@projects.command("set-rate")
@_project_argument
@click.argument("requests_per_minute", type=int, metavar="RPM")
@json_option
@pass_context
def set_rate(
    context: CommandContext, project: str, requests_per_minute: int, organisation: str | None, *, as_json: bool
) -> None:
    """Set the requests per minute of the project's keys that have no rate of their own; 0: the deployment's."""
    found = _find(context, project, organisation)
    changed = _change(context, "project.rate", found, {"requests_per_minute": requests_per_minute or None})
    _show_project(changed, "is changed", as_json=as_json)


@projects.command("deactivate")
@_project_argument
@yes_option
@pass_context
def deactivate_project(context: CommandContext, project: str, organisation: str | None, *, yes: bool) -> None:
    """Refuse every key of a project, until it is activated again."""
    found = _find(context, project, organisation)
    confirm(f"Refuse every key of the project {as_cell(found.name)}?", yes=yes)
    changed = _change(context, "project.deactivate", found, {"status": ProjectStatus.INACTIVE})
    click.echo(f"{as_cell(changed.name)} is inactive.")


@projects.command("activate")
@_project_argument
@pass_context
def activate_project(context: CommandContext, project: str, organisation: str | None) -> None:
    """Let the keys of a project work again."""
    found = _find(context, project, organisation)
    changed = _change(context, "project.activate", found, {"status": ProjectStatus.ACTIVE})
    click.echo(f"{as_cell(changed.name)} is active.")


@projects.command("members")
@_project_argument
@json_option
@pass_context
def list_members(context: CommandContext, project: str, organisation: str | None, *, as_json: bool) -> None:
    """List who belongs to a project."""
    found = _find(context, project, organisation)
    members = context.database.run(lambda session: context.organisations.members(session, found.id))
    if as_json:
        show_json([asdict(member) for member in members])
        return
    show_table(
        ("username", "role", "member since", "id"),
        [(member.username, member.role, member.member_since, member.user_id) for member in members],
        empty=f"{as_cell(found.name)} has no members; add one with: manage.py projects add-member",
    )


@projects.command("add-member")
@_project_argument
@click.option("--user", "--username", "username", required=True, help="Who joins.")
@pass_context
def add_member(context: CommandContext, project: str, organisation: str | None, username: str) -> None:
    """Let a user have keys in a project."""
    found = _find(context, project, organisation)
    user = context.database.run(lambda session: context.accounts.find_user(session, username))
    context.change(
        "project.add_member",
        found.id,
        {"user": user.id},
        {"project": found.name, "username": user.username},
        lambda session: context.organisations.add_member(session, found.id, user.id),
    )
    click.echo(f"{user.username} is a member of {as_cell(found.name)}.")


@projects.command("remove-member")
@_project_argument
@click.option("--user", "--username", "username", required=True, help="Who leaves.")
@yes_option
@pass_context
def remove_member(context: CommandContext, project: str, organisation: str | None, username: str, *, yes: bool) -> None:
    """Take a user out of a project; the user's keys in it are revoked."""
    found = _find(context, project, organisation)
    user = context.database.run(lambda session: context.accounts.find_user(session, username))
    confirm(f"Take {user.username} out of {as_cell(found.name)} and revoke the keys there?", yes=yes)
    revoked = context.change(
        "project.remove_member",
        found.id,
        {"user": user.id},
        {"project": found.name, "username": user.username},
        lambda session: context.organisations.remove_member(session, found.id, user.id),
    )
    for kid in revoked:
        context.announce_revocation(kid)
    click.echo(f"{user.username} is no member of {as_cell(found.name)} any more; keys revoked: {len(revoked)}.")


@click.group("organisations")
def organisations() -> None:
    """Organisations: who owns projects and users."""


@organisations.command("list")
@_prefix_option
@json_option
@pass_context
def list_organisations(context: CommandContext, prefix: str | None, *, as_json: bool) -> None:
    """List organisations."""
    listed = context.database.run(lambda session: context.organisations.list_organisations(session, name_prefix=prefix))
    if as_json:
        show_json([asdict(organisation) for organisation in listed])
        return
    show_table(
        ("name", "created", "id"),
        [(organisation.name, organisation.created_at, organisation.id) for organisation in listed],
        empty="There is no such organisation; make one with: manage.py organisations create NAME",
    )


@organisations.command("create")
@click.argument("name")
@json_option
@pass_context
def create_organisation(context: CommandContext, name: str, *, as_json: bool) -> None:
    """Make an organisation, and its first project, in which each of its users may have keys."""
    organisation_id = new_organisation_id()
    made = context.change(
        "organisation.create",
        organisation_id,
        {},
        {"name": name},
        lambda session: context.organisations.create_organisation(session, name=name, organisation_id=organisation_id),
    )
    _show_organisation(made, "is made", as_json=as_json)


@organisations.command("rename")
@click.argument("organisation")
@click.argument("name")
@json_option
@pass_context
def rename_organisation(context: CommandContext, organisation: str, name: str, *, as_json: bool) -> None:
    """Give an organisation another name."""
    found = context.database.run(lambda session: context.organisations.find_organisation(session, organisation))
    renamed = context.change(
        "organisation.rename",
        found.id,
        {},
        {"was": found.name, "name": name},
        lambda session: context.organisations.rename_organisation(session, found.id, name, version=found.version),
    )
    _show_organisation(renamed, "is renamed", as_json=as_json)


def _organisation_id(context: CommandContext, session: Session, reference: str | None) -> str | None:
    return None if reference is None else context.organisations.find_organisation(session, reference).id


def _find(context: CommandContext, project: str, organisation: str | None) -> Project:
    return context.database.run(
        lambda session: context.organisations.find_project(
            session, project, organisation_id=_organisation_id(context, session, organisation)
        )
    )


def _change(context: CommandContext, action: str, found: Project, changes: ProjectChanges) -> Project:
    """Recorded, and made to what was found: a change in between is told, not overwritten."""
    return context.change(
        action,
        found.id,
        {},
        {"was": found.name, **changes},
        lambda session: context.organisations.update_project(session, found.id, changes, version=found.version),
    )


def _show_project(project: Project, done: str, *, as_json: bool) -> None:
    if as_json:
        show_json(asdict(project))
        return
    click.echo(f"Project {as_cell(project.name)} ({project.id}) {done}.")


def _show_organisation(organisation: Organisation, done: str, *, as_json: bool) -> None:
    if as_json:
        show_json(asdict(organisation))
        return
    click.echo(f"Organisation {as_cell(organisation.name)} ({organisation.id}) {done}.")
