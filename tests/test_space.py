"""The space: what it holds, the one walk over it, and what it refuses."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixnas.arch import Architecture, Block, Stage, Stem
from mixnas.errors import InvalidSpace, NotInSpace, UnknownMixer
from mixnas.space import SearchSpace, shipped

GOOD = """
stems = ["conv16"]
ratio = [2]
[mixers]
additive = { head_width = [16] }
hilo = { head_width = [16], window = [2], alpha = [0.25, 0.5] }
[[stages]]
stride = 16
width = [32, 64]
depth = [1, 2]
[[stages]]
stride = 32
width = [64]
depth = [0, 1]
"""


def everything(space: SearchSpace) -> Iterator[Architecture]:
    """Enumerate a small space by trying every answer to every question of the walk."""
    pending: list[list[int]] = [[]]
    while pending:
        answers = pending.pop()
        asked: list[int] = []

        def choose(_, choices, answers=answers, asked=asked):
            asked.append(len(choices))
            index = answers[len(asked) - 1] if len(asked) <= len(answers) else 0
            return choices[index]

        yield space.pick(choose)
        for place in range(len(answers), len(asked)):
            prefix = answers + [0] * (place - len(answers))
            pending.extend([*prefix, index] for index in range(1, asked[place]))


@pytest.fixture
def write(tmp_path: Path):
    def write_space(text: str) -> Path:
        path = tmp_path / "edge.toml"
        path.write_text(text)
        return path

    return write_space


@pytest.mark.parametrize("name", shipped())
@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_every_sample_belongs_and_survives_json(name, seed):
    space = SearchSpace.load(name)
    arch = space.sample(random.Random(seed))
    space.check(arch)
    assert Architecture.from_json(arch.to_json()) == arch
    assert Architecture.from_json(arch.to_json()).id == arch.id
    assert space.only(arch).sole == arch
    assert space.only(arch).size() == 1


def test_equal_blocks_are_one_object_and_numbers_stay_as_they_were_written():
    one, again = (Block.of("hilo", 4.0, alpha=0.5, window=2) for _ in range(2))
    assert one is again
    kinds = [Block.of("hilo", ratio, window=window) for ratio in (1, 1.0) for window in (1, True)]
    assert [(repr(b.ratio), repr(b.options["window"])) for b in kinds] == [
        ("1", "1"), ("1", "True"), ("1.0", "1"), ("1.0", "True"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", shipped())
def test_a_space_survives_its_dictionary(name):
    space = SearchSpace.load(name)
    assert SearchSpace.from_dict(space.to_dict()) == space


def test_default_is_as_large_and_as_wide_as_promised(default):
    assert default.size() >= 1e12
    assert (default.image, default.classes) == (224, 1000)
    assert set(default.genes["s16.b0.mixer"]) == {
        "additive",
        "aff",
        "hilo",
        "single_head",
        "xnorm",
    }


def test_size_is_the_number_of_distinct_architectures(write):
    space = SearchSpace.load(write(GOOD))
    found = [arch.id for arch in everything(space)]
    assert len(found) == len(set(found)) == space.size()


def test_extremes_bracket_every_ordered_gene(default, rng):
    small, large = default.smallest(rng), default.largest(rng)
    for arch, end in ((small, 0), (large, -1)):
        for key, value in default.genotype(arch).items():
            if key != "stem" and not key.endswith(".mixer"):
                assert value == default.genes[key][end], key


def test_a_stage_of_depth_zero_is_absent(write):
    space = SearchSpace.load(write(GOOD))
    arch = Architecture(Stem("conv16"), (Stage(32, (Block.of("additive", 2.0, head_width=16),)),))
    assert arch in space
    assert space.genotype(arch)["s32.depth"] == 0
    assert space.only(arch).strides == (16,)


def test_an_architecture_of_another_space_is_refused(default, micro, rng):
    with pytest.raises(NotInSpace, match="is not offered"):
        micro.check(default.largest(rng))
    assert default.largest(rng) not in micro


def test_knobs_that_the_space_lacks_are_refused(write):
    space = SearchSpace.load(write(GOOD))
    block = Block.of("additive", 2.0, head_width=16, extra=1)
    with pytest.raises(NotInSpace):
        space.check(Architecture(Stem("conv16"), (Stage(32, (block,)),)))


def test_mixers_narrow_a_space(default, rng):
    narrow = default.only_mixers(("hilo", "xnorm"))
    assert {b.mixer for s in narrow.sample(rng).stages for b in s.blocks} <= {"hilo", "xnorm"}
    with pytest.raises(UnknownMixer, match=r"no mixer 'hillo'; did you mean 'hilo'\?"):
        default.only_mixers(("hillo",))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("additive = {", "fastfomer = {", r": no mixer 'fastfomer'; did you mean 'additive'"),
        ("additive = {", "litv2 = {", r"no mixer 'litv2'; did you mean 'hilo'\?"),
        ("width = [32, 64]", "width = [64, 32]", r"stage 1, width: \[64, 32\] does not increase"),
        ("width = [32, 64]", "width = [32, 32]", r"stage 1, width: .* does not increase"),
        ("width = [32, 64]", "width = []", r"stage 1, width: \[\] given"),
        ("width = [32, 64]", 'width = ["a"]', r"stage 1, width: .* a list of int is needed"),
        ("width = [32, 64]", "width = [true]", r"stage 1, width"),
        ("width = [32, 64]", "width = [40]", r"stage 1, mixer '\w+' at width 40: "),
        ("width = [32, 64]", "widths = [32]", r"stage 1: no field 'widths'; did you mean 'width'"),
        ("width = [32, 64]\n", "", r"stage 1, width: missing"),
        ("depth = [1, 2]", "depth = [0, 2]", r"stage 1, depth: only the last stage may offer 0"),
        ("depth = [0, 1]", "depth = [0]", r"stage 2, depth: only the last stage may offer 0"),
        ("stride = 32", "stride = 64", r"stage 2, stride: 64 follows 16"),
        ("ratio = [2]", "ratio = [4, 2]", r"ratio: \[4, 2\] does not increase"),
        ("ratio = [2]", "ratio = [0]", r"ratio: 0 is too small"),
        ('stems = ["conv16"]', 'stems = ["conv3"]', r"stems: no stem 'conv3'; did you mean"),
        ('stems = ["conv16"]', 'stems = ["conv8"]', r"'conv8' enters at stride 8, where there is"),
        ("alpha = [0.25, 0.5]", "beta = [0.5]", r"mixer 'hilo': no knob 'beta'"),
        ("alpha = [0.25, 0.5]", "alpha = [0.5, 0.25]", r"hilo.alpha: .* does not increase"),
        ("[mixers]", "colour = 3\n[mixers]", r"no field 'colour'"),
        ("[mixers]", "image = 0\n[mixers]", r"image: 0 given; a whole number of at least 16"),
        ("[mixers]", "[mixers", r"not a TOML file"),
    ],
)
def test_a_bad_space_is_refused_in_one_line(write, old, new, said):
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(InvalidSpace, match=said) as caught:
        SearchSpace.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_space_that_is_not_there():
    with pytest.raises(InvalidSpace, match=r"no search space 'defalt'; did you mean 'default'\?"):
        SearchSpace.load("defalt")
    with pytest.raises(InvalidSpace, match=r"no such space file"):
        SearchSpace.load("nowhere/edge.toml")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format":1,"stem":3}'])
def test_what_is_not_an_architecture_is_refused(text):
    with pytest.raises(InvalidSpace, match=r"architecture"):
        Architecture.from_json(text)
