"""The registry of feature networks: names that are known, and what they ask of the user."""

import pytest

from service.config.vocabulary import FEATURES
from service.errors import UsageError
from service.metrics.features import open_features


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="'vgg': unknown; there are efficientnet_lite0, inception"):
        open_features("vgg")
    assert FEATURES == ("efficientnet_lite0", "inception")


def test_inception_without_weights_says_which_file_it_wants():
    with pytest.raises(UsageError, match=r"path or the URL of pt_inception-2015-12-05-6726825d\.pth"):
        open_features("inception")


def test_weights_for_the_network_that_brings_its_own_are_refused():
    with pytest.raises(UsageError, match=r"bring their own weights; leave out here\.pth"):
        open_features("efficientnet_lite0", "here.pth")
