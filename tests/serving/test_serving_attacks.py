"""Whoever means harm to the server, and the honest client beside it. A real server on loopback; limits are small, to be quick."""

import base64
import io
import json
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
from attackers import answer_to, begun_upload, connected, connections, huge_png, is_closed, many_scans, request
from http_server import served
from PIL import Image
from search_builds import D, WordEncoder, png

from paired_index_assets.serving.limits import Limits
from paired_index_assets.serving.service import SearchService

QUERY = request(json.dumps({"embedding_input": [0.1] * D, "num_images": 3}).encode())
SMALL = Limits(
    connections=40, connections_of_peer=30, at_once=8, header_seconds=0.4, body_seconds=0.6, idle_seconds=0.5, reading_seconds=0.5
)
PATIENT = replace(SMALL, header_seconds=30, body_seconds=30, idle_seconds=30, reading_seconds=30)


@pytest.fixture(scope="module")
def service(finished, searchable_pairs):
    return SearchService.of_build(finished.root.root, WordEncoder(), texts=searchable_pairs, images=searchable_pairs)


@pytest.fixture
def at(service):
    """The port of a server with the given limits."""
    return lambda limits=SMALL: served_with(service, limits)


def served_with(service, limits):
    limited = SearchService(service.sets, service.encoder, limits=limits)
    return served(limited)


def picture_query(content: bytes, **fields) -> bytes:
    return request(json.dumps({"image": base64.b64encode(content).decode(), **fields}).encode())


def test_long_lists_are_refused_by_their_first_item_and_long_bodies_unread(at):
    with at() as port:
        for items in (b'""', b"null", b"[]", b"{}", b'"x"'):
            for field in (b"embedding_input", b"ids"):
                body = b'{"%s": [%s]}' % (field, b",".join([items] * (900_000 // (len(items) + 1))))
                status, said = answer_to(port, request(body, path="/metadata" if field == b"ids" else "/knn-service"))
                assert status == 400
                assert said["error"].startswith(f"{field.decode()}.0: ")
                assert ";" not in said["error"]  # one mistake is enough
        long = b'{"text": "a", "embedding_input": [%s]}' % b",".join([b'""'] * 5_000_000)
        status, said = answer_to(port, request(long))
        assert (status, "beside a picture" in said["error"]) == (400, True)
        assert answer_to(port, request(b"x" * (SMALL.body + 1)))[0] == 413


def test_a_large_picture_is_cut_out_before_the_rest_is_read(at):
    noise = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).save(noise, "PNG")
    assert len(noise.getvalue()) > SMALL.json
    with at() as port:
        status, found = answer_to(port, picture_query(noise.getvalue(), num_images=2))
        assert (status, len(found)) == (200, 2)
        escaped = picture_query(noise.getvalue(), num_images=2).partition(b"\r\n\r\n")[2].replace(b"/", rb"\/")
        assert answer_to(port, request(escaped)) == (status, found)
        stuffed = json.dumps({"image": base64.b64encode(noise.getvalue()).decode(), "embedding_input": [""] * 400_000}).encode()
        assert answer_to(port, request(stuffed))[0] == 400


def test_pictures_of_too_many_pixels_or_passes_are_refused_undecoded(at):
    scanned = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(scanned, "JPEG", progressive=True)
    film_behind_it = scanned.getvalue() + b"\xff\xda" * 5000
    with at() as port:
        status, said = answer_to(port, picture_query(huge_png(12_000, 11_000)))
        assert (status, "pixels" in said["error"]) == (400, True)
        status, said = answer_to(port, picture_query(many_scans(scanned.getvalue(), 100)))
        assert (status, "scans" in said["error"]) == (400, True)
        assert answer_to(port, picture_query(scanned.getvalue()))[0] == 200
        assert answer_to(port, picture_query(film_behind_it))[0] == 200


@pytest.mark.parametrize("first", [b"", b"POST /knn-service HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", begun_upload()])
def test_connections_that_come_to_nothing_cost_honest_clients_nothing(at, first):
    with at(PATIENT) as port, connected(port) as honest:
        honest.sendall(QUERY)
        assert b"200 OK" in honest.recv(1 << 16)  # and rests
        with connections(port, 100, first):
            for _ in range(5):
                assert answer_to(port, QUERY)[0] == 200
            honest.sendall(QUERY)
            assert b"200 OK" in honest.recv(1 << 16)  # those in the middle of a request went first


def test_where_all_rest_the_one_that_rests_longest_goes(at):
    with at(PATIENT) as port, ExitStack() as held:
        rested = []
        for _ in range(PATIENT.connections_of_peer):
            rested.append(held.enter_context(connected(port, QUERY)))
            assert b"200 OK" in rested[-1].recv(1 << 16)
        assert answer_to(port, QUERY)[0] == 200
        assert is_closed(rested[0], 1)
        assert not any(is_closed(connection, 0.01) for connection in rested[1:])


def test_heads_bodies_and_rests_have_an_end(at):
    with at() as port:
        for first, status in ((b"", b"408"), (b"GET / HT", b"408"), (begun_upload(), b"408"), (QUERY, b"200")):
            with connected(port, first) as connection:
                connection.settimeout(10)
                assert status in connection.recv(1 << 16)
                assert is_closed(connection)


def test_a_byte_now_and_then_does_not_prolong_it(at):
    with at() as port:
        for first in (b"GET / HTTP/1.1\r\nX: ", begun_upload()):
            with connected(port, first) as connection:
                began = time.monotonic()
                with pytest.raises(OSError):  # noqa: PT011  # a reset or a broken pipe
                    while time.monotonic() - began < 20:
                        connection.sendall(b"a")
                        time.sleep(0.05)


def test_a_head_without_end_is_refused(at):
    with at(PATIENT) as port, connected(port, b"GET / HTTP/1.1\r\n") as connection:
        connection.settimeout(10)
        try:
            while True:
                connection.sendall(b"X-More: " + b"a" * 1000 + b"\r\n")
        except OSError:
            pass
        assert is_closed(connection)
        assert answer_to(port, QUERY)[0] == 200


def test_answers_that_are_not_read_are_let_go(at):
    many = request(json.dumps({"ids": list(range(3000))}).encode(), path="/metadata")
    with at(replace(SMALL, unread=4 << 20, at_once=100)) as port, connections(port, 4, many * 40) as unread:
        assert answer_to(port, QUERY)[0] == 200
        for connection in unread:
            assert is_closed(connection)


def test_of_large_uploads_that_do_not_end_the_oldest_goes(at):
    with at(replace(PATIENT, uploads=3)) as port:
        large = begun_upload(8 << 20) + b" " * (2 << 20)
        with connections(port, 6, large) as held:
            noise = io.BytesIO()
            Image.effect_noise((1500, 1500), 90).save(noise, "PNG")
            assert answer_to(port, picture_query(noise.getvalue(), num_images=1))[0] == 200
            assert b"408" in held[0].recv(1 << 16)


def test_slow_uploads_take_no_place_among_those_that_wait(at):
    with at(PATIENT) as port, connections(port, 25, begun_upload()):  # more than at_once
        for _ in range(5):
            assert answer_to(port, QUERY)[0] == 200


def test_bodies_in_crumbs_are_read_all_the_same(at):
    head = b"POST /knn-service HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({"embedding_input": [0.1] * D, "num_images": 3}).encode()
    with at(PATIENT) as port:
        assert answer_to(port, head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")[0] == 200
        crumbs = b"1\r\na\r\n" * (SMALL.json + 10) + b"0\r\n\r\n"
        assert answer_to(port, head + crumbs)[0] == 400


def test_pictures_that_are_sent_are_found(at):
    with at() as port:
        assert answer_to(port, picture_query(png((200, 10, 10)), num_images=4))[0] == 200
