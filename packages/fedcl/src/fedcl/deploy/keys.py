"""Certificates and keys of a federation on one machine: a certificate authority, a server's, and one key a node."""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAYS = 30
"""For which a certificate is valid; deployments on loopback are short."""


@dataclass(frozen=True)
class Certificates:
    """PEM files: of the authority, which clients trust, and of the server with its private key."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path, host: str = "127.0.0.1") -> Certificates:
    """Writes an authority and a server's certificate for one address; private keys are readable by their owner alone."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedcl local authority")])

    def signed(name: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(authority_key, hashes.SHA384())

    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    root = signed(issuer, authority_key.public_key(), x509.BasicConstraints(ca=True, path_length=0), usage)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")])
    leaf = signed(subject, server_key.public_key(), x509.BasicConstraints(ca=False, path_length=None), address)
    files = Certificates(folder / "ca.crt", folder / "server.pem", folder / "server.key")
    pem = serialization.Encoding.PEM
    write_private(files.authority, root.public_bytes(pem))
    write_private(files.certificate, leaf.public_bytes(pem))
    write_private(
        files.key,
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    return files


def make_node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes a P-384 key for a SuperNode in OpenSSH's format; gives the private and the public file."""
    key = ec.generate_private_key(ec.SECP384R1())
    private, public = folder / name, folder / f"{name}.pub"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    write_private(private, key.private_bytes(encoding, form, serialization.NoEncryption()))
    ssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    write_private(public, key.public_key().public_bytes(*ssh))
    return private, public


def write_private(file: Path, content: bytes) -> None:
    """Writes a new file that only its owner may read, from its first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
