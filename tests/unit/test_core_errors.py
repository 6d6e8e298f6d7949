"""The error tree: every class crosses process boundaries whole and says what to do."""

from __future__ import annotations

import pickle

import pytest

from tenancy.data_isolation.core import errors


def _tree(root: type[errors.TenancyError]) -> list[type[errors.TenancyError]]:
    # Other tests may derive classes of their own; they are not part of the tree.
    children = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(found for child in children for found in _tree(child))]


@pytest.mark.parametrize("kind", _tree(errors.TenancyError), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_all_that_it_holds(kind):
    error = kind("what happened", "23505", 1.5)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert (copy.detail, copy.sqlstate, copy.retry_after_s) == ("what happened", "23505", 1.5)
    assert str(copy) == "what happened"


@pytest.mark.parametrize("kind", _tree(errors.TenancyError), ids=lambda kind: kind.__name__)
def test_the_first_line_of_the_docstring_is_the_default_text(kind):
    assert str(kind()) == kind.__doc__.splitlines()[0]
    assert str(kind()).endswith(".")


@pytest.mark.parametrize("kind", _tree(errors.TenancyError), ids=lambda kind: kind.__name__)
def test_every_class_is_drawn_in_the_tree_of_the_module(kind):
    assert kind.__name__ in errors.__doc__


def test_slugs_of_leaves_tell_errors_apart():
    leaves = [kind for kind in _tree(errors.TenancyError) if not kind.__subclasses__()]

    slugs = [kind.slug for kind in leaves]

    assert len(set(slugs)) == len(slugs)


def test_what_is_retryable_has_a_status_that_says_so():
    for kind in _tree(errors.TenancyError):
        if kind.retryable:
            assert kind.status in {409, 429, 503, 507}
