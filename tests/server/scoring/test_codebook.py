"""Clusters of tokens: found where they are, counted token by token, the same from a file."""

import pytest
import torch

from server.scoring.codebook import Book, from_tensors, make_book, sizes, to_tensors

PLACES = torch.tensor([[0.0, 0.0, 9.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [5.0, 5.0, 5.0]])


def around(count: int = 50) -> torch.Tensor:
    noise = torch.randn(count, len(PLACES), 3, generator=torch.Generator().manual_seed(1)) * 0.2
    return (PLACES + noise).view(-1, 3) * torch.tensor([1.0, 100.0, 0.01])


def four() -> Book:
    """Some seeds begin twice in one cluster; this one does not."""
    return make_book(around(), depth=1, size=4, seed=1)


def test_tokens_of_one_kind_get_one_code_whatever_the_scale_of_a_state() -> None:
    codes = four().codes(around()).view(-1, len(PLACES))
    assert (codes == codes[0]).all()
    assert len(set(codes[0].tolist())) == len(PLACES)


def test_the_same_seed_makes_the_same_book() -> None:
    again, other = four(), make_book(around(), depth=1, size=4, seed=4)
    assert torch.equal(again.weights, four().weights)
    assert not torch.equal(again.weights, other.weights)


def test_few_tokens_have_few_kinds() -> None:
    assert sizes([make_book(around()[:20], depth=0, size=64, seed=0)]) == [2]
    assert sizes([make_book(around()[:1], depth=0, size=64, seed=0)]) == [1]


def test_counts_are_of_the_response_alone_and_grow_token_by_token() -> None:
    book = four()
    codes = torch.tensor([[0, 1, 0, 0], [2, 2, 3, 1]])
    is_response = torch.tensor([[True, True, True, True], [True, True, False, False]])
    counts = book.counts(codes, is_response)
    expected = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    torch.testing.assert_close(counts, expected.log1p())
    weights = torch.tensor([0.5, -2.0, 3.0, 7.0])
    running = book.running(codes, is_response, weights)
    for at in range(4):
        beginning = is_response & (torch.arange(4) <= at)
        torch.testing.assert_close(running[:, at], book.counts(codes, beginning) @ weights)


def test_a_book_is_the_same_from_a_file() -> None:
    books = (four(), make_book(around(), depth=2, size=3, seed=0))
    again = from_tensors(to_tensors(books))
    for one, other in zip(books, again, strict=True):
        assert one.depth == other.depth
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.bias, other.bias)
    assert from_tensors({}) == ()
    with pytest.raises(KeyError):
        from_tensors({name: value for name, value in to_tensors(books).items() if name != "codes1.bias"})
