import csv
import io
import itertools

import pytest

from debzero.data.csv_source import Source, _end_of_rows, ahead


def cut(content, separator, size, folder):
    """The pieces, and what is left behind them."""
    (folder / "r.csv").write_bytes(content)
    with open(folder / "r.csv", "rb") as file:
        source = Source(file, 0)
        found = [bytes(piece) for piece in source.rows(separator, size)]
        return found, source.read()


def rows(content, separator=","):
    return [row for row in csv.reader(io.StringIO(content.decode(), newline=""), delimiter=separator) if row]


def test_a_block_is_cut_between_rows_alone_wherever_quotation_marks_and_breaks_stand():
    """All texts of six of these characters."""
    cuts = 0
    for characters in itertools.product(b'a",\n', repeat=6):
        content = bytes(characters)
        for last in (False, True):
            end = _end_of_rows(content, ",", last)
            if end:
                assert rows(content[:end]) + rows(content[end:]) == rows(content), (content, end)
                cuts += end < len(content)
    assert cuts > 500


@pytest.mark.parametrize(("content", "separator", "whole"), [
    (b'"a;b";x\n"c\nd";y\n' * 9, ";", True), (b'"say ""x""",y\r\n"",x\r\n' * 9, ",", True),
    (b"a,x\n" * 19 + b"b,y", ",", True), (b'5" nails,x\nb,y\n' * 9, ",", False), (b"a,x\rb,y\r" * 9, ",", False),
    (b'a,x\n"never closed,y\n' + b"b,x\n" * 9, ",", False), (b"a,x\nb\0,y\n" * 9, ",", False)])
def test_what_is_certain_is_cut_and_the_rest_is_left(tmp_path, content, separator, whole):
    found, left = cut(content, separator, 40, tmp_path)
    assert b"".join(found) + left == content and (not left) == whole and (len(found) > 1 or not whole)


def test_the_pieces_come_in_their_order_and_the_first_error_is_raised():
    def work(piece):
        if piece == b"7":
            raise ValueError(piece)
        return piece

    assert [*ahead(work, iter([b"%d" % i for i in range(7)]))] == [b"%d" % i for i in range(7)]
    done = ahead(work, iter([b"%d" % i for i in range(99)]))
    assert [*itertools.islice(done, 7)] == [b"%d" % i for i in range(7)]
    with pytest.raises(ValueError, match="7"):
        next(done)
