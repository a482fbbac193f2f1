"""A shuffle as arithmetic in 32-bit integers: an index's new position, with no stored order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

FEISTEL_ROUNDS = 8


def divmod_product(a: jax.Array, b: int, n: int) -> tuple[jax.Array, jax.Array]:
    """Returns divmod(a * b, n) as uint32 scalars, though a * b may have 64 bits.

    By shift and add over the bits of b: no sum of two remainders reaches 2^32.

    Args:
      a: integer scalar in [0, 2^32).
      b: at least 1.
      n: in [1, 2^31).
    """
    a = a.astype(jnp.uint32)
    quotient = remainder = jnp.uint32(0)
    for bit in f"{b:b}":
        terms = [(quotient, remainder)]
        if bit == "1":
            terms.append((a // n, a % n))
        for more, rest in terms:
            total = remainder + rest
            carry = (total >= n).astype(jnp.uint32)
            quotient, remainder = quotient + more + carry, total - carry * n
    return quotient, remainder


def permute(key: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """Returns the position of `index` in a shuffle of 0, ..., n - 1, without making the shuffle.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers with as many bits as n - 1;
    results that are not below n pass through it again until one is, which keeps it a permutation
    ("cycle walking", Black and Rogaway 2002). A round hashes one half of the bits into the other by
    MurmurHash3's 32-bit finaliser.

    Args:
      key: of the shuffle.
      index: uint32 scalar in [0, n).
      n: in [1, 2^31).
    """
    n_bits = max(2, (n - 1).bit_length())
    low = n_bits // 2
    mask = 2**low - 1, 2 ** (n_bits - low) - 1
    words = jax.random.bits(key, (FEISTEL_ROUNDS,), jnp.uint32)

    def mix(x: jax.Array) -> jax.Array:
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    def network(x: jax.Array) -> jax.Array:
        halves = [x & mask[0], x >> low]
        for i in range(FEISTEL_ROUNDS):
            to, of = i % 2, 1 - i % 2
            halves[to] ^= mix(halves[of] ^ words[i]) & mask[to]
        return halves[1] << low | halves[0]

    return jax.lax.while_loop(lambda x: x >= n, network, network(index))
