"""What a models file means, and everything that is wrong with one: told at once, with place and remedy, without a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.routing import ModelsFile, configured_providers, models_file_of
from secure_llm_proxy.routing.models import ModelRoute, Strategy
from secure_llm_proxy.settings import SettingsError, UpstreamSettings, load_settings
from secure_llm_proxy.vocabulary.providers import Capability, Patience
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

SECRETS = {"SECRET_KEY": "9f2c1d7be04a63588c1f0d2e7ab49630", "ENCRYPTION_KEY": "55ee12aa7c04bd810b8e4d1f92c7a635"}
EXAMPLE = Path(__file__).resolve().parents[3] / "config" / "models.example.yaml"
OWN = "providers:\n  own: {kind: openai_compatible, base_url: 'http://127.0.0.1:9/v1'}\n"


def settings_with(folder: Path, text: str | bytes, **environ: str) -> UpstreamSettings:
    path = folder / "models.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings({**SECRETS, "MODELS_FILE": str(path), **environ}, env_file=folder / "none.env").upstream


def read(folder: Path, text: str | bytes, *, production: bool = False, **environ: str) -> ModelsFile:
    return models_file_of(settings_with(folder, text, **environ), production=production)


def mistakes_in(folder: Path, text: str | bytes, *, production: bool = False, **environ: str) -> str:
    with pytest.raises(OperatorError) as refused:
        read(folder, text, production=production, **environ)
    assert "models.yaml" in str(refused.value)
    return str(refused.value)


# --- what it means ----------------------------------------------------------------------------------------------------


def test_the_shipped_example_is_a_good_file(tmp_path: Path) -> None:
    made = read(tmp_path, EXAMPLE.read_bytes(), OPENAI_API_KEY="k", AZURE_EU_KEY_1="one", AZURE_EU_KEY_2="two")

    assert [model.name for model in made.models] == ["smart", "long", "small", "confidential"]
    assert [provider.name for provider in made.providers] == ["openai", "azure-eu", "local"]


def test_a_provider_has_what_the_file_says(tmp_path: Path) -> None:
    text = """
providers:
  one:
    kind: openai_compatible
    base_url: http://127.0.0.1:9/v1/
    api_keys: [env:ONE_KEY, env:OTHER_KEYS]
    timeouts: {connect_s: 2, first_byte_s: 2.5}
    tags: {region: no, year: "2026"}
    formats: {openai_chat: /chat}
    usage_in_streams: false
    models: [a, b, a]
"""

    [made] = read(tmp_path, text, ONE_KEY="k1", OTHER_KEYS="k2,k3").providers

    assert (made.name, made.kind, made.base_url, made.source) == (
        "one",
        "openai_compatible",
        "http://127.0.0.1:9/v1",
        "file",
    )
    assert [key.get_secret_value() for key in made.keys] == ["k1", "k2", "k3"]
    assert made.patience == Patience(connect_s=2, first_byte_s=2.5)
    assert made.tags == {"region": "no", "year": "2026"}
    assert made.formats == {WireFormat.OPENAI_CHAT: "/chat"}
    assert (made.models, made.usage_in_streams) == (("a", "b"), False)


def test_a_model_has_what_the_file_says(tmp_path: Path) -> None:
    text = (
        OWN
        + """
models:
  m:
    aliases: [n]
    strategy: least-busy
    routes: [{provider: own, model: x, weight: 2}, {provider: own, model: y}]
    fallbacks: [o]
    context_fallbacks: [p]
    content_policy_fallbacks: [o, p]
    capabilities: [tools, json_schema]
    context_tokens: 8000
    max_output_tokens: 1000
    forbid: {data: [public, unknown], region: us}
  o: {routes: [{provider: own, model: z}]}
  p: {routes: [{provider: own, model: z}], aliases: [long]}
"""
    )

    made = read(tmp_path, text).models[0]

    assert (made.name, made.aliases, made.strategy) == ("m", ("n",), Strategy.LEAST_BUSY)
    assert made.routes == (ModelRoute("own", "x", 2), ModelRoute("own", "y", 1))
    assert (made.fallbacks, made.context_fallbacks, made.content_policy_fallbacks) == (("o",), ("p",), ("o", "p"))
    assert made.capabilities == frozenset({Capability.TOOLS, Capability.JSON_SCHEMA})
    assert (made.context_tokens, made.max_output_tokens) == (8000, 1000)
    assert made.forbid == {"data": {"public", "unknown"}, "region": {"us"}}


@pytest.mark.parametrize("text", ["", "# nothing\n", "providers:\nmodels:\n"])
def test_a_file_may_say_nothing(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text) == ModelsFile()


def test_a_provider_of_a_known_kind_needs_nothing_but_its_name(tmp_path: Path) -> None:
    [made] = read(tmp_path, "providers:\n  groq:\n", GROQ_API_KEY="k").providers

    assert (made.kind, made.base_url) == ("groq", "https://api.groq.com/openai/v1")
    assert [key.get_secret_value() for key in made.keys] == ["k"]


def test_a_vendors_key_goes_to_no_other_address(tmp_path: Path) -> None:
    [made] = read(tmp_path, "providers:\n  groq: {base_url: 'https://elsewhere.invalid'}\n", GROQ_API_KEY="k").providers

    assert made.keys == ()


def test_azures_version_by_date_is_the_older_api(tmp_path: Path) -> None:
    text = """
providers:
  new: {kind: azure, base_url: "https://a.invalid/", api_keys: env:AZURE}
  old: {kind: azure, base_url: "https://a.invalid", api_keys: env:AZURE, api_version: 2024-10-21}
"""

    new, old = read(tmp_path, text, AZURE="k").providers

    assert (new.kind, new.base_url, new.query) == ("azure", "https://a.invalid", "")
    assert (old.kind, old.base_url, old.query) == ("azure_deployments", "https://a.invalid", "api-version=2024-10-21")


def test_keys_may_stand_in_files_and_in_the_credentials_directory(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "own").write_text("from-credentials\n")
    (credentials / "credentials_second").write_text("from-directory\n")
    (tmp_path / "own.key").write_text("from-file\n")
    text = f"providers:\n  groq: {{api_keys: ['credential:own', 'credential:second', 'file:{tmp_path}/own.key']}}\n"

    [made] = read(tmp_path, text, CREDENTIALS_DIRECTORY=str(credentials)).providers

    assert [key.get_secret_value() for key in made.keys] == ["from-credentials", "from-directory", "from-file"]


def test_a_variable_that_the_file_refers_to_may_have_any_name_and_stand_in_the_env_file(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("providers:\n  groq: {api_keys: [env:OPENAI_API_KEY_2, env:MINE]}\n")
    (tmp_path / "set.env").write_text("OPENAI_API_KEY_2=two\nMINE=mine\n")
    environ = {**SECRETS, "MODELS_FILE": str(tmp_path / "models.yaml")}

    upstream = load_settings(environ, env_file=tmp_path / "set.env").upstream

    [made] = models_file_of(upstream, production=False).providers
    assert [key.get_secret_value() for key in made.keys] == ["two", "mine"]
    (tmp_path / "models.yaml").write_text("providers:\n")
    with pytest.raises(SettingsError):
        load_settings(environ, env_file=tmp_path / "set.env")


def test_a_key_that_the_file_uses_makes_no_second_provider(tmp_path: Path) -> None:
    text = "providers:\n  main: {kind: openai, api_keys: env:OPENAI_API_KEY}\n"

    upstream = settings_with(tmp_path, text, OPENAI_API_KEY="k", GROQ_API_KEY="g")

    found = configured_providers(upstream, models_file_of(upstream, production=False).providers)
    assert [one.name for one in found] == ["main", "groq"]


def test_the_file_says_more_of_a_provider_of_the_environment(tmp_path: Path) -> None:
    text = "providers:\n  openai: {tags: {region: us}}\n"

    upstream = settings_with(tmp_path, text, OPENAI_API_KEY="k")

    [made] = configured_providers(upstream, models_file_of(upstream, production=False).providers)
    assert (made.tags, made.source, [key.get_secret_value() for key in made.keys]) == ({"region": "us"}, "file", ["k"])


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_every_mistake_is_told_at_once_with_its_line_and_remedy(tmp_path: Path) -> None:
    text = """providers:
  one: {kind: openai_compatibel, base_url: "http://127.0.0.1:9"}
  two: {kind: openai_compatible}
  three: {kind: groq, api_version: v1, api_keys: [env:NOT_SET]}
  four: {kind: openai_compatible, base_url: "http://127.0.0.1:9", formats: {openai_chta: /x, openai_chat: x}}
models:
  m:
    aliases: [n]
    routes: [{provider: tow, model: x, weight: 3}]
    fallbacks: [m, o]
    capabilities: [tool]
  n: {routes: [{provider: two, model: x}]}
"""

    told = mistakes_in(tmp_path, text)

    for sentence in (
        "line 2: providers.one.kind openai_compatibel is no kind of provider (did you mean openai_compatible?); one of openai,",
        "line 3: providers.two.base_url is missing: a provider of kind openai_compatible has no address of its own",
        "line 4: providers.three.api_version is for Azure OpenAI only",
        "line 4: providers.three.api_keys[0] NOT_SET is not set in the environment",
        "line 5: providers.four.formats.openai_chta is no wire format (did you mean openai_chat?)",
        "line 5: providers.four.formats.openai_chat must be a path below base_url that begins with /",
        "line 8: models.m.aliases[0] n means the model n already",
        "line 9: models.m.routes[0].provider there is no provider tow (did you mean two?)",
        "line 9: models.m.routes[0].weight has no effect in order; set strategy: weighted",
        "line 10: models.m.fallbacks[0] is this model itself",
        "line 10: models.m.fallbacks[1] there is no model o in this file",
        "line 11: models.m.capabilities[0] is no capability (did you mean tools?)",
    ):
        assert sentence in told
    assert "12 mistakes" in told


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("modles: {}\n", "modles is no field here (did you mean models?); known are providers, models, stored_providers"),
        ("providers:\n  own: {base_ulr: x}\n", "providers.own.base_ulr is no field here (did you mean base_url?)"),
        (OWN + "models:\n  m: {}\n", "models.m.routes is missing"),
        (OWN + "models:\n  m: {routes: []}\n", "models.m.routes must name at least one"),
        (OWN + "models:\n  m: {routes: [{model: x}]}\n", "models.m.routes[0].provider is missing"),
        (OWN + "models:\n  m: {routes: [{provider: own, model: 4}]}\n", "routes[0].model must be text; put it in quotes"),
        (OWN + "models:\n  m: {routes: [{provider: own, model: x, weight: 0}], strategy: weighted}\n", "weight must be"),
        (OWN + "models:\n  m: {routes: [{provider: own, model: x}], strategy: random}\n", "models.m.strategy must be"),
        (OWN + "models:\n  'a b': {routes: [{provider: own, model: x}]}\n", "must be 1 to 256 visible ASCII"),
        (OWN + "models:\n  m: {routes: [{provider: own, model: x}], context_tokens: 1.5}\n", "must be a whole number"),
        ("providers: [a]\n", "providers must be a mapping"),
        ("- a\n", "the file must be a mapping"),
        ("providers:\n  Own: {kind: groq, api_keys: []}\n", "providers.Own must be 1 to 64 small letters"),
        ("providers:\n  own: {base_url: 'https://x.invalid'}\n", "providers.own.kind is missing, since own is no kind"),
        ("providers:\n  openai:\n", "providers.openai.api_keys is missing; write env:NAME, or set OPENAI_API_KEY"),
        ("providers:\n  groq: {api_keys: env:SECRET_KEY}\n", "SECRET_KEY is a setting of this product and no provider's key"),
        ("providers:\n  groq: {api_keys: 'file:own.key'}\n", "must be an absolute path"),
        ("providers:\n  groq: {api_keys: 'file:/nowhere/own.key'}\n", "/nowhere/own.key can't be read: No such file"),
        ("providers:\n  groq: {api_keys: 'credential:../x'}\n", "must name a file of the credentials directory"),
        ("providers:\n  groq: {api_keys: 'credential:own'}\n", "there is no CREDENTIALS_DIRECTORY here"),
        ("providers:\n  groq: {api_keys: [], tags: {region: 'a b'}}\n", "providers.groq.tags.region must be name: value"),
        ("providers:\n  groq: {api_keys: [], timeouts: {total_s: -1}}\n", "providers.groq.timeouts.total_s must be"),
        ("providers:\n  groq: {api_keys: [], formats: {openai_chat: /a/../b}}\n", "must be a path below base_url"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_by_its_path(text: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in mistakes_in(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("providers: {\n", "line 2: is no YAML"),
        ("a: b: c\n", "line 1: is no YAML"),
        ("a: !!python/object:os.system x\n", "line 1: has a value with a tag"),
        ("a: &a [*a]\n", "line 1: grows without end"),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("? [a]\n: b\n", "line 1: has a key that is no text"),
        (b"a: \xff\n", "is no UTF-8 text"),
        (b"a: \x00\n", "is no YAML"),
        ("# " + "x" * 1_048_577, "is larger than"),
        ("a: " + "9" * 5000 + "\n", "has a number that is none"),
    ],
    ids=range(10),
)
def test_what_is_no_yaml_of_ours_is_told_by_its_line(text: str | bytes, sentence: str, tmp_path: Path) -> None:
    assert sentence in mistakes_in(tmp_path, text)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))

    assert "grows without end by its aliases" in mistakes_in(tmp_path, bomb)


def test_a_key_that_stands_twice_is_refused_with_its_place(tmp_path: Path) -> None:
    text = OWN + "models:\n  m: {routes: [{provider: own, model: x}]}\n  m: {routes: [{provider: own, model: y}]}\n"

    assert "line 5: models.m stands here a second time; keep one of them" in mistakes_in(tmp_path, text)


@pytest.mark.parametrize(
    "place",
    ["sk-canary-5c1e", "[sk-canary-5c1e]", "{sk-canary-5c1e: x}", "'env:'", "env:canary 5c1e", "env:AIzacanary5c1e"],
)
def test_a_key_in_clear_is_refused_and_never_repeated(place: str, tmp_path: Path) -> None:
    told = mistakes_in(tmp_path, f"providers:\n  groq: {{api_keys: {place}}}\n")

    assert "providers.groq.api_keys" in told
    assert "canary" not in told


def test_a_route_or_fallback_that_could_never_be_taken_is_a_mistake(tmp_path: Path) -> None:
    text = """providers:
  eu: {kind: openai_compatible, base_url: "http://127.0.0.1:9", tags: {region: eu}}
  us: {kind: openai_compatible, base_url: "http://127.0.0.1:9", tags: {region: us}}
models:
  m: {routes: [{provider: eu, model: x}, {provider: us, model: x}], require: {region: eu}, fallbacks: [o]}
  o: {routes: [{provider: us, model: x}]}
"""

    told = mistakes_in(tmp_path, text)

    assert "models.m.routes[1] provider us has not the tags" in told
    assert "models.m.fallbacks[0] no provider of o has the tags" in told


def test_a_context_fallback_takes_longer_conversations(tmp_path: Path) -> None:
    text = (
        OWN
        + """models:
  m: {routes: [{provider: own, model: x}], context_tokens: 8000, context_fallbacks: [o]}
  o: {routes: [{provider: own, model: y}], context_tokens: 8000}
"""
    )

    assert "models.m.context_fallbacks[0] o takes no longer conversations" in mistakes_in(tmp_path, text)


def test_a_stored_provider_may_be_named_when_the_file_says_that_it_is_one(tmp_path: Path) -> None:
    models = "models:\n  m: {routes: [{provider: kept, model: x}], require: {region: eu}}\n"

    made = read(tmp_path, f"stored_providers: [kept]\n{models}")

    assert made.stored_providers == {"kept"}
    assert "there is no provider kept" in mistakes_in(tmp_path, models)


def test_in_production_no_key_crosses_a_network_in_clear(tmp_path: Path) -> None:
    text = "providers:\n  own: {kind: openai_compatible, base_url: 'http://llm.internal/v1', api_keys: env:MINE}\n"

    assert read(tmp_path, text, MINE="k").providers
    assert "is http, and the key would cross the network" in mistakes_in(tmp_path, text, production=True, MINE="k")


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    environ = {**SECRETS, "MODELS_FILE": str(tmp_path / "models.yaml")}
    upstream = load_settings(environ, env_file=tmp_path / "none").upstream

    with pytest.raises(OperatorError, match="can't be read: No such file"):
        models_file_of(upstream, production=False)


def test_the_usual_file_may_be_absent_and_no_file_be_wanted(tmp_path: Path) -> None:
    for environ in (SECRETS, {**SECRETS, "MODELS_FILE": "none"}):
        upstream = load_settings(environ, env_file=tmp_path / "none").upstream

        assert upstream.models_file is None
        assert models_file_of(upstream, production=True) == ModelsFile()
