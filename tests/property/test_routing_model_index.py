"""An index that follows the roster, against one that is built anew."""

from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.ids import ModelName
from felloe.domain.roster import Load, Member, Roster
from felloe.routing.model_index import ModelIndex
from routing_fakes import HERE, make_member, make_replica, make_roster, node_id

MODELS = [ModelName("first"), ModelName("second")]


@st.composite
def members(draw: st.DrawFn, number: int) -> Member:
    names = draw(st.lists(st.sampled_from(MODELS), max_size=3))
    kinds = st.sampled_from([("chat",), ("chat", "tools"), ("embedding",)])
    states = st.sampled_from(["ready", "ready", "starting"])
    speeds = st.sampled_from([0.0, 4.0, 50.0])
    replicas = [
        make_replica(name=name, state=draw(states), capabilities=draw(kinds), speed=draw(speeds)) for name in names
    ]
    load = Load(active={draw(st.sampled_from(MODELS)): draw(st.integers(0, 5))}, draining=draw(st.booleans()))
    version = draw(st.sampled_from(["0.1.0", "0.1.7", "0.9.0", ""]))
    here = HERE if number == 0 else node_id(number)
    return make_member(here, *replicas, load=load, alive=draw(st.booleans()), version=version)


@st.composite
def histories(draw: st.DrawFn) -> list[Roster]:
    """Snapshots of one roster: in each, some members are the very same as before, some new, some gone."""
    rosters: list[Roster] = []
    present: dict[int, Member] = {}
    for _ in range(draw(st.integers(1, 5))):
        for number in draw(st.lists(st.integers(0, 5), max_size=4)):
            if draw(st.booleans()) and number in present:
                del present[number]
            else:
                present[number] = draw(members(number))
        rosters.append(make_roster(*present.values()))
    return rosters


def contents(index: ModelIndex) -> dict[str, object]:
    def key(target: object) -> str:
        return repr(target)

    return {
        name: (
            sorted(index.get(name).ready, key=key),
            sorted(index.get(name).free, key=key),
            index.get(name).ready.typical_speed,
            index.get(name).ready.varied,
            index.get(name).known,
            index.get(name).capabilities,
        )
        for name in MODELS
    }


@given(histories())
def test_following_gives_what_building_anew_gives(rosters: list[Roster]) -> None:
    index = ModelIndex(rosters[0], "0.1.3")
    for roster in rosters[1:]:
        index.follow(roster)
        assert contents(index) == contents(ModelIndex(roster, "0.1.3"))
        assert index.roster is roster


def test_a_member_that_another_replaces_at_its_place_is_gone() -> None:
    replica = make_replica(name=MODELS[0])
    index = ModelIndex(make_roster(make_member(node_id(1), replica)))
    index.follow(make_roster(make_member(node_id(2), replica)))
    assert [target.node for target in index.get(MODELS[0]).ready] == [node_id(2)]
