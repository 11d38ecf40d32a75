"""Secure aggregation without Flower: what comes out, what stays in, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from Crypto.Cipher import ChaCha20
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.secure_group import Group

from ahfal_app.class_statistics import class_proportions, class_statistics, statistics_from_sums
from ahfal_app.errors import PrivacyRefused, SecureAggregationFailed
from ahfal_app.privacy import masking, shamir
from ahfal_app.privacy.masking import Session
from ahfal_app.privacy.participant import Participant
from ahfal_app.privacy.quantisation import UNITS, dequantise, quantise
from ahfal_app.privacy.sessions import PublicKeys, Secrets, Unmasking
from ahfal_app.seeds import numpy_generator

ALL = range(6)
COUNTS_KC = numpy_generator(1, "secure aggregation").integers(0, 30, size=(6, 4))


@pytest.fixture
def group() -> Iterator[Group]:
    """Six clients, of which four must stay."""
    made = Group(COUNTS_KC)
    yield made
    made.close()


# --- what comes out --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "survivors"),
    [
        ((ALL, ALL, ALL, ALL), ALL),
        ((range(5), range(5), range(5), range(5)), range(5)),
        ((ALL, range(1, 6), range(1, 6), range(1, 6)), range(1, 6)),
        ((ALL, ALL, (0, 2, 3, 5), (0, 2, 3, 5)), (0, 2, 3, 5)),
        ((ALL, ALL, ALL, (1, 2, 4, 5)), ALL),
        ((ALL, (0, 1, 2, 3, 5), (0, 1, 2, 5), (0, 1, 2, 5)), (0, 1, 2, 5)),
    ],
    ids=["all", "never there", "before shares", "before vector", "before unmasking", "twice"],
)
def test_sum_is_exactly_that_of_the_clients_that_sent_a_vector(group: Group, steps, survivors):
    np.testing.assert_array_equal(group.run(*steps), group.expected(survivors))


@st.composite
def _courses(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    """Histograms of some clients, and who is left at each step."""
    num_clients = draw(st.integers(3, 7))
    num_classes = draw(st.integers(1, 12))
    needed = max(3, -(-65 * num_clients // 100))
    left, steps = list(range(num_clients)), []
    for place in range(4):
        fewest = needed if place < 3 else -(-65 * num_clients // 100)
        left = sorted(
            draw(st.lists(st.sampled_from(left), min_size=min(fewest, len(left)), unique=True))
        )
        steps.append(left)
    row = st.lists(st.integers(0, 1000), min_size=num_classes, max_size=num_classes).filter(any)
    rows = draw(st.lists(row, min_size=num_clients, max_size=num_clients))
    return np.array(rows, dtype=np.int64), steps


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(_courses())
def test_statistics_are_the_plain_ones_whoever_drops_out(course):
    counts_KC, steps = course
    group = Group(counts_KC)
    total_D = group.run(*steps)
    group.close()
    survivors = steps[2]
    sums = dequantise(total_D, len(survivors))
    secure = statistics_from_sums(sums.proportions_C, sums.squares_C, sums.num_clients, 12.0)
    plain = class_statistics(counts_KC[survivors], 12.0)
    np.testing.assert_allclose(secure.mean_C, plain.mean_C, rtol=0, atol=2.0**-41 + 1e-15)
    np.testing.assert_allclose(
        secure.deviation_C**2, plain.deviation_C**2, rtol=0, atol=3 * 2.0**-41 + 1e-15
    )
    # The bound that docs/privacy.md states, in percentage points.
    assert 100 * np.abs(secure.deviation_C - plain.deviation_C).max() <= 1.2e-4


def test_hand_computed_sums():
    """p = (.5,.3,.2), (.4,.4,.2), (.6,.2,.2): Σp = (1.5,.9,.6), Σp² = (.77,.29,.12)."""
    group = Group(np.array([[5, 3, 2], [4, 4, 2], [6, 2, 2]]))
    sums = dequantise(group.run(*[range(3)] * 4), 3)
    group.close()
    assert sums.num_clients == 3
    np.testing.assert_allclose(sums.proportions_C, [1.5, 0.9, 0.6], atol=3 * 2.0**-41)
    np.testing.assert_allclose(sums.squares_C, [0.77, 0.29, 0.12], atol=3 * 2.0**-41)
    statistics = statistics_from_sums(sums.proportions_C, sums.squares_C, 3, 8.0)
    np.testing.assert_allclose(100 * statistics.deviation_C[:2], [8.16497] * 2, atol=1e-5)
    assert statistics.low_C.tolist() == [False, False, True]


def test_binary_exact_boundary_of_tau_is_kept():
    """σ = 12.5 points exactly: high at τ = 12.5, as in the plain statistics."""
    rows = np.array([[5, 3], [3, 5], [5, 3], [3, 5]])
    group = Group(rows)
    sums = dequantise(group.run(*[range(4)] * 4), 4)
    group.close()
    secure = statistics_from_sums(sums.proportions_C, sums.squares_C, 4, 12.5)
    assert secure.low_C.tolist() == class_statistics(rows, 12.5).low_C.tolist() == [False, False]


def test_client_without_labels_helps_and_adds_nothing():
    counts_KC = COUNTS_KC.copy()
    counts_KC[2] = 0
    group = Group(counts_KC)
    total_D = group.run(ALL, ALL, ALL, ALL)
    group.close()
    assert [advertised.has_labels for advertised in group.advertised.values()].count(False) == 1
    assert dequantise(total_D, 5).num_clients == 5
    np.testing.assert_array_equal(total_D, group.expected([0, 1, 3, 4, 5]))


def test_every_step_may_be_a_process_of_its_own(tmp_path: Path):
    group = Group(COUNTS_KC, tmp_path)
    np.testing.assert_array_equal(group.run(ALL, ALL, ALL[1:], ALL[1:]), group.expected(ALL[1:]))
    group.close()


def test_a_repeated_step_gives_the_same_answer(group: Group):
    group.run(ALL, ALL, ALL[:5], ALL[:5])
    again = Group(COUNTS_KC)
    again._stores, again.session = group._stores, group.session
    for client in ALL[:5]:
        assert again.client(client).unmask(range(5)) == group.answers[client]
    group.begin()
    for step, clients in ((group.advertise, ALL), (group.share, ALL), (group.mask, ALL)):
        step(clients)
        before = (group.advertised, group.shared, group.masked)
        step(clients)
        assert (group.advertised, group.shared) == before[:2]
        assert all((group.masked[c] == before[2][c]).all() for c in group.masked)


# --- what stays in ---------------------------------------------------------------------------


@pytest.mark.slow
def test_masked_vectors_look_uniform():
    """Bytes of 100 sessions with one and the same histogram; false alarms: one in 10^9."""
    group = Group(np.array([[7, 0, 1]] * 3))
    words = []
    for _ in range(100):
        group.begin()
        for step in (group.advertise, group.share, group.mask):
            step(range(3))
        words += list(group.masked.values())
    group.close()
    counts = np.bincount(np.concatenate(words).view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-9
    assert len(np.unique(np.concatenate(words))) == 300 * 7


def test_masked_vector_is_what_the_paper_says(group: Group):
    """y_u = x_u + PRG(b_u) + Σ_{v>u} PRG(s_uv) - Σ_{v<u} PRG(s_vu), with other libraries."""

    def stream(secret: bytes, *label: object) -> list[int]:
        info = json.dumps(["run", 0, group.session.name, *label]).encode()
        extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
        key = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
        content = ChaCha20.new(key=key, nonce=bytes(8)).encrypt(bytes(8 * 9))
        return [int.from_bytes(content[8 * i : 8 * i + 8], "little") for i in range(9)]

    for step in (group.advertise, group.share, group.mask):
        step(ALL)
    for client in ALL:
        secrets = _secrets(group, client)
        expected = [int(x) for x in group.vector(client)]
        masks = [(1, stream(secrets.seed, "self-mask", client))]
        for peer in set(ALL) - {client}:
            own = X25519PrivateKey.from_private_bytes(secrets.mask_key)
            agreed = own.exchange(X25519PublicKey.from_public_bytes(group.roster[peer].mask))
            pair = sorted((client, peer))
            mask = stream(agreed, "pairwise-mask", *pair, list(ALL))
            masks.append((1 if client < peer else -1, mask))
        for sign, mask in masks:
            expected = [(x + sign * m) % 2**64 for x, m in zip(expected, mask, strict=True)]
        assert group.masked[client].tolist() == expected


def test_no_peer_is_given_away_by_both_of_its_shares(group: Group):
    group.run(ALL, ALL, ALL[:4], ALL[:4])
    for answer in group.answers.values():
        assert set(answer.seeds) == {0, 1, 2, 3}
        assert set(answer.mask_keys) == {4, 5}


def test_secrets_are_gone_once_the_sum_is_unmasked(tmp_path: Path):
    group = Group(COUNTS_KC, tmp_path)
    for step in (group.advertise, group.share, group.mask):
        step(ALL)
    secrets = _secrets(group, 0)
    hidden = [secrets.cipher_key, secrets.mask_key, secrets.seed]
    group.close()
    before = (tmp_path / "0.sqlite").read_bytes()
    assert all(secret.hex().encode() in before for secret in hidden)
    group.unmask(ALL)
    group.close()
    after = b"".join(path.read_bytes() for path in tmp_path.glob("0.sqlite*"))
    assert not any(secret.hex().encode() in after for secret in hidden)


def _secrets(group: Group, client: int) -> Secrets:
    return Secrets.model_validate_json(group.store(client).session(0) or "")


# --- a server that asks twice ----------------------------------------------------------------


def test_no_second_roster(group: Group):
    group.advertise(ALL)
    group.share(ALL)
    roster = {client: group.roster[client] for client in ALL[:5]}
    with pytest.raises(PrivacyRefused, match="among others"):
        group.client(0).share_keys(roster)


def test_no_second_vector_against_other_peers(group: Group):
    group.advertise(ALL)
    group.share(ALL)
    group.mask(ALL)
    with pytest.raises(PrivacyRefused, match="against others"):
        group.client(0).mask(group.ciphertexts_for(0, range(5)))


def test_no_second_set_of_survivors_in_a_session(group: Group):
    group.run(ALL, ALL, ALL, ALL)
    with pytest.raises(PrivacyRefused, match="after"):
        group.client(0).unmask(range(5))


def test_no_second_set_of_survivors_in_a_later_session(group: Group):
    total_D = group.run(ALL, ALL, ALL, ALL[:4])
    group.begin()
    for step in (group.advertise, group.share):
        step(ALL)
    assert group.advertised[0].bound_to == tuple(ALL)
    assert group.advertised[5].bound_to == ()
    group.mask(ALL[:5])
    for client in ALL[:4]:
        with pytest.raises(PrivacyRefused, match="asked to unmask over the clients"):
            group.client(client).unmask(ALL[:5])
    # The two that have not unmasked before are too few for any sum.
    group.client(4).unmask(ALL[:5])
    # Over the same clients there is only the same sum to be had.
    group.begin()
    np.testing.assert_array_equal(group.run(ALL, ALL, ALL, ALL[:4]), total_D)


def test_labels_that_come_later_do_not_change_what_is_summed(group: Group):
    total_D = group.run(ALL, ALL, ALL, ALL[:4])
    group.counts_KC = COUNTS_KC + 5
    group.begin()
    np.testing.assert_array_equal(group.run(ALL, ALL, ALL, ALL[:4]), total_D)


def test_an_old_session_is_over_when_a_new_one_begins(group: Group):
    for step in (group.advertise, group.share, group.mask):
        step(ALL)
    old = group.session
    masked = group.masked
    group.begin()
    group.advertise(ALL)
    group.session = old
    with pytest.raises(PrivacyRefused, match="not the next step"):
        group.client(0).unmask(masked)


def test_no_keys_of_a_session_that_is_over(group: Group):
    group.run(ALL, ALL, ALL, ALL)
    with pytest.raises(PrivacyRefused, match="session that is over"):
        group.client(0).advertise(group.vector(0))
    with pytest.raises(PrivacyRefused, match="not the next step"):
        group.client(0).share_keys(group.roster)


def test_steps_out_of_order_are_refused(group: Group):
    for step in (
        lambda: group.client(0).share_keys({}),
        lambda: group.client(0).mask({}),
        lambda: group.client(0).unmask(ALL),
    ):
        with pytest.raises(PrivacyRefused, match="not the next step"):
            step()


# --- too few ---------------------------------------------------------------------------------


def test_fewer_than_the_threshold_are_refused_at_each_step(group: Group):
    group.advertise(ALL)
    roster = group.roster
    with pytest.raises(PrivacyRefused, match="3 clients are left; 4 are needed"):
        group.client(0).share_keys({client: roster[client] for client in ALL[:3]})
    group.share(ALL)
    with pytest.raises(PrivacyRefused, match="3 clients are left; 4 are needed"):
        group.client(0).mask(group.ciphertexts_for(0, range(3)))
    group.mask(ALL)
    with pytest.raises(PrivacyRefused, match="3 clients are left; 4 are needed"):
        group.client(0).unmask(range(3))
    group.unmask(ALL)
    np.testing.assert_array_equal(group.total(), group.expected(ALL))


def test_fewer_shares_than_the_threshold_give_nothing(group: Group):
    for step, clients in ((group.advertise, ALL), (group.share, ALL), (group.mask, ALL)):
        step(clients)
    group.unmask(ALL[:3])
    with pytest.raises(SecureAggregationFailed, match="no sum over 6 clients"):
        dequantise(group.total(), 6)


def test_sum_over_two_clients_with_labels_is_refused_by_the_clients():
    counts_KC = COUNTS_KC.copy()
    counts_KC[:4] = 0
    group = Group(counts_KC)
    group.advertise(ALL)
    group.share(ALL)
    with pytest.raises(PrivacyRefused, match="2 clients with labels are left; 3 are needed"):
        group.client(5).mask(group.ciphertexts_for(5))
    group.close()


def test_survivors_without_labels_do_not_count():
    counts_KC = COUNTS_KC.copy()
    counts_KC[:3] = 0
    group = Group(counts_KC)
    for step in (group.advertise, group.share, group.mask):
        step(ALL)
    with pytest.raises(PrivacyRefused, match="2 clients with labels are left"):
        group.client(4).unmask(range(5))
    group.close()


@pytest.mark.parametrize("threshold", [3, 7])
def test_threshold_of_half_the_clients_or_of_more_than_all_is_refused(group: Group, threshold: int):
    with pytest.raises(PrivacyRefused, match=f"threshold={threshold}"):
        Participant(group.store(0), group.session, 0, 6, threshold)


# --- what was changed on its way -------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 12, -1])
def test_changed_ciphertext_is_named(group: Group, place: int):
    group.advertise(ALL)
    group.share(ALL)
    ciphertexts = group.ciphertexts_for(0)
    changed = bytearray(ciphertexts[3])
    changed[place] ^= 1
    with pytest.raises(SecureAggregationFailed, match="shares of client 3 for client 0"):
        group.client(0).mask(ciphertexts | {3: bytes(changed)})
    # It was no step: with what was really sent it goes on.
    group.mask(ALL)
    group.unmask(ALL)
    np.testing.assert_array_equal(group.total(), group.expected(ALL))


def test_ciphertexts_of_other_clients_or_sessions_are_named(group: Group):
    group.advertise(ALL)
    group.share(ALL)
    right = group.ciphertexts_for(0)
    for wrong in (right[4], group.shared[3][1], b"", b"short"):
        with pytest.raises(SecureAggregationFailed, match="were changed on their way"):
            group.client(0).mask(right | {3: wrong})
    keys = masking.new_private_key(), masking.new_private_key()
    sealed = masking.encrypt(
        b"secret", keys[0], masking.public_key(keys[1]), Session("run", 0, "a"), 1, 2
    )
    opened = masking.decrypt(
        sealed, keys[1], masking.public_key(keys[0]), Session("run", 0, "a"), 1, 2
    )
    assert opened == b"secret"
    for session in (Session("run", 1, "a"), Session("nur", 0, "a"), Session("run", 0, "b")):
        with pytest.raises(SecureAggregationFailed):
            masking.decrypt(sealed, keys[1], masking.public_key(keys[0]), session, 1, 2)


def test_peers_that_are_not_part_of_it_are_refused(group: Group):
    group.advertise(ALL[:5])
    group.share(ALL[:5])
    with pytest.raises(PrivacyRefused, match="not part of it"):
        group.client(0).mask(group.ciphertexts_for(0) | {5: b"x" * 77})
    group.mask(ALL[:5])
    with pytest.raises(PrivacyRefused, match="not part of it"):
        group.client(0).unmask(ALL)
    with pytest.raises(PrivacyRefused, match="not part of it"):
        group.client(0).unmask(ALL[1:5])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda roster: roster | {0: roster[1]}, "its keys were changed"),
        (lambda roster: roster | {2: roster[1]}, "there twice"),
        (lambda roster: roster | {9: PublicKeys(b"a" * 32, b"b" * 32)}, "unknown clients"),
        (lambda roster: {c: keys for c, keys in roster.items() if c}, "its keys were changed"),
    ],
)
def test_roster_that_cannot_be_right_is_refused(group: Group, change, problem: str):
    group.advertise(ALL)
    with pytest.raises(PrivacyRefused, match=problem):
        group.client(0).share_keys(change(group.roster))


def test_public_key_that_gives_no_secret_is_named(group: Group):
    group.advertise(ALL)
    roster = group.roster | {1: dataclasses.replace(group.roster[1], cipher=bytes(32))}
    with pytest.raises(SecureAggregationFailed, match="public key cannot be used"):
        group.client(0).share_keys(roster)


@pytest.mark.parametrize("dropped", [(), (5,)])
def test_wrong_shares_are_found_out(group: Group, dropped: tuple[int, ...]):
    stayed = [client for client in ALL if client not in dropped]
    group.run(ALL, ALL, stayed, stayed)
    right = group.answers[2]
    flipped = {c: bytes([share[0] ^ 1]) + share[1:] for c, share in right.seeds.items()}
    group.answers[2] = Unmasking(flipped, right.mask_keys)
    with pytest.raises(SecureAggregationFailed, match="does not fit"):
        dequantise(group.total(), len(stayed))
    if dropped:
        keys = {c: bytes([share[0] ^ 1]) + share[1:] for c, share in right.mask_keys.items()}
        group.answers[2] = Unmasking(right.seeds, keys)
        with pytest.raises(SecureAggregationFailed, match="shares of client 5's key"):
            group.total()


def test_peers_told_different_groups_do_not_cancel(group: Group):
    """A server that lies about who is there gets noise."""
    group.advertise(ALL)
    group.share(ALL)
    for client in ALL:
        told = ALL[:5] if client == 0 else ALL
        group.masked[client] = group.client(client).mask(group.ciphertexts_for(client, told))
    group.answers = {c: group.client(c).unmask(ALL) for c in ALL[1:]}
    with pytest.raises(SecureAggregationFailed, match="no sum over 6 clients"):
        dequantise(group.total(), 6)


# --- parts -----------------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16) | st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret: bytes, data: st.DataObject):
    count = data.draw(st.integers(3, 9))
    threshold = data.draw(st.integers(2, count))
    shares = dict(enumerate(shamir.split(secret, threshold, count)))
    assert {len(share) for share in shares.values()} == {len(secret)}
    order = data.draw(st.permutations(range(count)))
    assert shamir.combine({place: shares[place] for place in order[:threshold]}) == secret
    if threshold > 2:
        assert shamir.combine({place: shares[place] for place in order[: threshold - 1]}) != secret


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_quantised_vector_is_off_by_half_a_step(counts: list[int]):
    p_C = class_proportions(counts)
    exact_D = np.concatenate([[float(any(counts))], p_C, p_C**2])
    vector_D = quantise(p_C)
    assert np.abs(vector_D / UNITS - exact_D).max() <= 0.5 / UNITS + 2.0**-53


@pytest.mark.parametrize(
    "sum_D",
    [
        [2 * UNITS, UNITS, 2 * UNITS, UNITS, UNITS],
        [3 * UNITS, UNITS, UNITS, UNITS, UNITS],
        [3 * UNITS, UNITS, 2 * UNITS, 4 * UNITS, UNITS],
    ],
)
def test_what_cannot_be_a_sum_over_three_is_refused(sum_D: list[int]):
    with pytest.raises(SecureAggregationFailed, match="no sum over 3 clients"):
        dequantise(np.array(sum_D, dtype=np.uint64), 3)
