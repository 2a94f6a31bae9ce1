"""Names: full, short, tagged, near misses, clashes and pins."""

import pytest

from zoo.errors import AmbiguousNameError, PluginError, UnknownNameError, UsageError
from zoo.registry.card import Card, File, Provider, Weights
from zoo.registry.lookup import Registry, _mark_shadowed, _splits, default_registry
from zoo.registry.plugin import Plugin
from zoo.registry.settings import Settings


def card(plugin: str, name: str, dist: str = "", tags: tuple[str, ...] = (), **fields: object) -> Card:
    provider = Provider(plugin=plugin, distribution=dist or f"dist-{plugin}", version="1.0")
    file = File(role="model", sha256="0" * 64, size_bytes=1, sources=("file:/x",))
    weights = tuple(Weights(tag=tag, files=(file,)) for tag in tags)
    full = f"{plugin}/{name}"
    return Card(name=full, kind="encoder", modalities=("image",), provider=provider, weights=weights, **fields)  # type: ignore[arg-type]


def registry(*cards: Card, **settings: object) -> Registry:
    """A registry over cards that are not installed."""
    chosen = Settings(**settings)  # type: ignore[arg-type]
    plugins: dict[tuple[str, str], list[Card]] = {}
    for item in cards:
        plugins.setdefault((item.provider.plugin, item.provider.distribution), []).append(item)
    made = [
        Plugin(name=name, distribution=dist, version="1.0", module="m", cards=tuple(owned))
        for (name, dist), owned in sorted(plugins.items())
    ]
    result = Registry.__new__(Registry)
    result.settings, result.plugins, result._manager = chosen, _mark_shadowed(made, chosen), None
    return result


def test_full_short_and_tagged_names() -> None:
    zoo = registry(card("a", "net", tags=("one", "two")), card("b", "v2.5-small", tags=("x.y",)))
    assert zoo.find("a/net").name == "a/net.one"
    assert zoo.find("net.two").name == "a/net.two"
    assert zoo.find("b/v2.5-small").name == "b/v2.5-small.x.y"
    assert zoo.find("v2.5-small.x.y").name == "b/v2.5-small.x.y"
    assert zoo.find("dist-a:net").name == "a/net.one"


def test_splits_keep_dots_of_names_and_tags() -> None:
    assert list(_splits("a/b.c.d")) == [("a/b.c.d", None), ("a/b.c", "d"), ("a/b", "c.d")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nett", "no installed plugin provides 'nett'; did you mean a/net"),
        ("a/nett", "did you mean a/net"),
        ("a/net.three", "no installed plugin provides 'a/net.three'; did you mean a/net"),
        ("zebra", "no installed plugin provides 'zebra'; zoo list shows what is installed"),
        ("", "no installed plugin provides ''"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message.replace("?", r"\?")):
        registry(card("a", "net", tags=("one",))).find(name)


def test_short_name_of_two_plugins_is_ambiguous_until_pinned() -> None:
    both = (card("a", "net"), card("b", "net"))
    with pytest.raises(AmbiguousNameError) as caught:
        registry(*both).find("net")
    assert str(caught.value) == (
        "'net' is provided by dist-a 1.0 and by dist-b 1.0; write dist-a:a/net or dist-b:b/net, "
        "or settle it with: zoo pin net dist-a"
    )
    assert registry(*both, pins={"net": "dist-b"}).find("net").name == "b/net"
    assert registry(*both).find("b/net").name == "b/net"


def test_two_distributions_with_one_full_name() -> None:
    both = (card("a", "net", "one"), card("a", "net", "two"), card("a", "other", "two"))
    zoo = registry(*both)
    assert [plugin.state for plugin in zoo.plugins] == ["shadowed", "shadowed"]
    assert zoo.plugins[0].error == "a/net also provided by two 1.0"
    with pytest.raises(AmbiguousNameError, match="provided by one 1.0 and by two 1.0"):
        zoo.find("a/net")
    assert zoo.find("two:a/net").card.provider.distribution == "two"
    assert zoo.find("a/other").card.provider.distribution == "two"
    pinned = registry(*both, pins={"a": "one"})
    assert [plugin.state for plugin in pinned.plugins] == ["ok", "shadowed"]
    assert pinned.find("a/net").card.provider.distribution == "one"


def test_order_of_installation_changes_nothing() -> None:
    forwards = registry(card("a", "net", "one"), card("a", "net", "two"))
    backwards = registry(card("a", "net", "two"), card("a", "net", "one"))
    assert forwards.plugins == backwards.plugins


def test_defaults() -> None:
    one, two = card("a", "x", default_for=("classify",)), card("b", "y", default_for=("classify",))
    assert registry(one).default("classify") == "dist-a:a/x"
    sing = card("b", "z", default_for=("sing",)), card("c", "z", default_for=("sing",))
    assert registry(*sing, defaults={"sing": "c/z"}).default("sing") == "c/z"
    with pytest.raises(
        UnknownNameError, match=r"provides 'b/q'; .* \(it is your default for 'sing', in .*: zoo default sing --remove"
    ):
        registry(*sing, defaults={"sing": "b/q"}).default("sing")
    with pytest.raises(
        UsageError,
        match="classify needs a dual_encoder of image.text, a/x has kind encoder .* zoo default classify --remove",
    ):
        registry(one, defaults={"classify": "a/x"}).default("classify")
    with pytest.raises(UsageError, match="no installed plugin offers a default model for 'sing'"):
        registry(one).default("sing")
    assert registry(one, two).default("classify") == "dist-a:a/x"


def test_a_second_claim_of_a_default_neither_takes_over_nor_stops_the_first(caplog: pytest.LogCaptureFixture) -> None:
    one, two = card("b", "y", default_for=("t",)), card("a", "x", default_for=("t",))
    with pytest.raises(
        UsageError, match="2 models offer to be the default for 't': dist-a:a/x, dist-b:b/y; settle it with"
    ):
        registry(one, two).default("t")
    assert registry(one).default("t") == "dist-b:b/y"
    assert registry(one, two).default("t") == "dist-b:b/y"
    assert "dist-a:a/x also offers to be the default for 't'; using dist-b:b/y, as before" in caplog.text


def test_name_of_a_plugin_that_is_out_of_order() -> None:
    zoo = registry(card("a", "net"))
    broken = Plugin(name="b", distribution="dist-b", version="1", module="m", state="disabled", error="disabled by you",
                    cure="zoo enable b")  # fmt: skip
    zoo.plugins.append(broken)
    with pytest.raises(PluginError, match="'b/net' cannot be had: plugin 'b' .* is disabled .*; zoo enable b"):
        zoo.find("b/net")


def test_patterns() -> None:
    zoo = registry(card("a", "net_s"), card("a", "net_l"), card("b", "other"))
    assert [found.name for found in zoo.cards("a/*")] == ["a/net_l", "a/net_s"]
    assert [found.name for found in zoo.cards("net_*")] == ["a/net_l", "a/net_s"]
    assert zoo.cards(modality="audio") == []


def test_an_unknown_name_of_a_known_distribution_says_what_to_install() -> None:
    for name in ("timm/efficientnet_lite0", "efficientnet_lite0", "timm/resnet50.a1_in1k"):
        with pytest.raises(UnknownNameError, match="modalzoo-timm would: zoo install modalzoo-timm"):
            registry(card("a", "net")).find(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet18", "did you mean timm/resnet18?"),
        ("resnet18.a1_in1k", "did you mean timm/resnet18.a1_in1k?"),
        ("timm/resnet18.a1_in1kk", "did you mean timm/resnet18.a1_in1k or"),
        ("timm/resmet18", "did you mean timm/resnet18"),
        ("ViT-B-32", "did you mean clip/ViT-B-32?"),
        ("VitB-32", "clip/ViT-B-32"),
    ],
)
def test_a_name_of_a_family_without_its_plugin_or_with_a_typing_error(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        default_registry().find(name)
    assert str(caught.value).startswith(f"no installed plugin provides {name!r}; did you mean ")
    assert hint in str(caught.value)
