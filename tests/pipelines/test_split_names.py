import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.split_names import is_split_word, refuse_split_names, split_meanings, without_split_word


def meanings(*words: str) -> dict[str, str]:
    return split_meanings({word: f"line {at}" for at, word in enumerate(words)})


def test_words_for_splits() -> None:
    assert meanings("Train", "VAL", "valid", "validation", "testing") == {
        "Train": "train",
        "VAL": "valid",
        "valid": "valid",
        "validation": "valid",
        "testing": "test",
    }
    assert meanings("train", "dev") == {"train": "train", "dev": "valid"}
    assert meanings("eval", "test") == {"eval": "valid", "test": "test"}
    assert not any(is_split_word(word) for word in ("trainer", "tests", "", "0", "holdout"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "holdout"), "line 1: unknown split 'holdout'; allowed: train, valid, test"),
        (("train", ""), "line 1: unknown split ''"),
        (("dev", "validation"), "line 0: split 'dev', but 'validation' at line 1, so it is unclear"),
        (("eval", "val"), "line 0: split 'eval', but 'val' at line 1, so it is unclear"),
        (("train", "Eval"), "line 1: split 'Eval' could mean validation or test"),
    ],
)
def test_words_that_are_refused(words, message: str) -> None:
    with pytest.raises(InputError, match=message):
        meanings(*words)


def test_names_of_classes() -> None:
    assert without_split_word("human_train") == ("human", "train")
    assert without_split_word("Test") == ("", "Test")
    assert without_split_word("constrained") is None
    assert without_split_word("train-test") is None
    refuse_split_names(["human_train", "mouse_train", "yeast"], "x", "")
    for names in (["a", "valid"], ["fish.train", "fish.dev"]):
        with pytest.raises(InputError, match=r"x: .*mend it"):
            refuse_split_names(names, "x", "mend it")
