"""How a batch is dealt: every image once, with its group, whatever the workers and portions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config.portions import is_dealt, panel_batch, portions

SMALL = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16])


@given(group=SMALL, groups=SMALL, workers=SMALL, start=st.integers(0, 99), most=st.integers(1, 99))
def test_each_image_goes_through_once_with_all_of_its_group_or_an_equal_part(
    group, groups, workers, start, most
):
    batch = group * groups
    if not is_dealt(batch, group, workers):
        with pytest.raises(ValueError, match=f"cannot be dealt to {workers} workers"):
            portions(batch, group, workers)
        return
    dealt = portions(batch, group, workers, most)
    numbers = np.arange(start, start + batch)
    seen = []
    for worker in range(workers):
        share = numbers[numbers % workers == worker]
        for portion in range(dealt.count):
            images = dealt.part(share, portion)
            assert len(images) == dealt.size
            for first in range(dealt.groups):  # image i is in group i mod dealt.groups
                members = images[first :: dealt.groups]
                assert len(members) * dealt.peers == group
                assert len(set(members % groups)) == 1
            seen += images.tolist()
    assert sorted(seen) == numbers.tolist()
    assert dealt.size <= most or dealt.groups == 1


@given(group=SMALL, groups=SMALL, workers=SMALL)
def test_without_a_limit_a_share_goes_through_at_once(group, groups, workers):
    if is_dealt(group * groups, group, workers):
        dealt = portions(group * groups, group, workers)
        assert (dealt.count, dealt.size) == (1, group * groups // workers)


@given(group=st.integers(1, 300), groups=st.integers(1, 40))
def test_the_panel_is_whole_groups_and_no_larger_than_it_must_be(group, groups):
    batch = group * groups
    panel = panel_batch(batch, group)
    possible = [n * group for n in range(1, groups + 1) if groups % n == 0]
    enough = max(64, batch // 8)
    assert panel in possible
    assert panel >= min(enough, batch)
    assert all(fewer < enough for fewer in possible if fewer < panel)


@pytest.mark.parametrize(
    ("batch", "group", "panel"),
    [(64, 64, 64), (16, 16, 16), (512, 4, 64), (2048, 256, 256), (2048, 16, 256), (2048, 2048, 2048)],
)
def test_the_panel_of_the_presets(batch, group, panel):
    assert panel_batch(batch, group) == panel
