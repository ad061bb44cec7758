"""What a domain need not have: it says so, clearly."""

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.contract import Domain
from mamba_bio_audio.pipelines.domains import domain_named, domain_of, domains
from mamba_bio_audio.pipelines.sample_writer import SampleRequest


class Notes(Domain):
    """The least there can be."""

    name = "notes"
    unit = "note"
    first_sample = "--length 10"
    kinds: ClassVar = {}

    def codec(self, config):
        return SimpleNamespace(name="notes", vocab_size=88, start_id=None, pad_id=0)

    def open(self, config, *, length, batch_size, seed, progress=None):
        raise NotImplementedError

    def describe(self, summary):
        return []


def test_what_a_domain_does_not_do_is_one_clear_error():
    request = SampleRequest(Path("run"), None, 10, 1, (), {}, None, {})
    with pytest.raises(InputError, match=r"mba sample has no file format for notes data; use mba\.generate"):
        Notes().writer(request)
    with pytest.raises(InputError, match="files of notes cannot be read record by record"):
        Notes().records(["a.mid"], None)
    with pytest.raises(InputError, match="files of notes are not read in pieces"):
        Notes().stored(["a.mid"], None)
    with pytest.raises(InputError, match=r"a\.mid: samples of notes are not measured"):
        Notes().measure(Path("a.mid"), None, None)


def test_a_domain_without_more_has_sensible_defaults(tmp_path):
    symbols = Notes().symbols(None, 100)
    assert (symbols.unit, symbols.pad_id, symbols.strands, symbols.reverse) == ("note", 0, ("forward",), None)
    assert symbols.known(np.array([1, 2, 3])).tolist() == [True] * 3
    assert Notes().measures(tmp_path / "a.mid") is None
    assert Notes().find_samples(tmp_path) is None
    assert "0 to 87" in Notes().card_symbols(Notes().codec(None))
    Notes().write_tokenizer(Notes().codec(None), tmp_path)
    assert not list(tmp_path.iterdir())


def test_domains_are_found_by_kind_and_by_the_name_of_their_codec():
    for domain in domains():
        assert domain_named(domain.name) is domain
        for kind, section in domain.kinds.items():
            assert domain_of(kind) is domain
            assert section.model_fields["kind"].default == kind
