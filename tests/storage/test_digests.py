"""A digest is that of the bytes."""

from gpt_modules.storage.digests import sha256_of


def test_the_digest_of_a_file(tmp_path):
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
