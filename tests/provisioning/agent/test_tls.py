"""With TLS, whoever is asked must be vouched for; without it, no certificate is read."""

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.agent.control import ControlPlane, Trouble
from provisioning.agent.store import Holding, Store
from provisioning.drivers.slurmrest import Slurm
from provisioning.errors import OutsideFault
from provisioning.models import Cluster
from provisioning.secrets import seal


def certificate_for_itself(folder: Path) -> Path:
    """Return a file with a key and a certificate that nobody but its owner signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "both.pem"
    file.write_bytes(key.private_bytes(*plain) + certificate.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[str]:
    """The address of a server that says it is whom we want, and cannot prove it; it counts nothing."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Quiet(HTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hangs up is what is wanted."""

    asked: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_for_itself(tmp_path))
    with Quiet(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()
        thread.join()
    assert asked == []


def slurm_at(url: str) -> Slurm:
    return Slurm(Cluster(base_url=url, version="v0.0.38", user="u", token_sealed=seal("token")))


def test_an_agent_tells_its_token_and_key_to_no_impostor(impostor: str) -> None:
    with pytest.raises(Trouble, match="CERTIFICATE_VERIFY_FAILED"):
        ControlPlane(impostor, agent_version="1").join(token="t", facts={})
    store = Store(impostor, agent_version="1", who=lambda: {"node": "n", "key": "k"})
    with pytest.raises(Trouble, match="CERTIFICATE_VERIFY_FAILED"):
        store.folder(Holding("asg_1", 1), "0" * 64)


def test_a_cluster_s_token_is_told_to_no_impostor(impostor: str) -> None:
    with slurm_at(impostor) as slurm, pytest.raises(OutsideFault, match="CERTIFICATE_VERIFY_FAILED"):
        slurm.nodes()


def test_without_tls_no_certificates_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: pytest.fail("certificates were read"))
    slurm_at("http://localhost:1")
    ControlPlane("http://localhost:1", agent_version="1")
    Store("http://localhost:1", agent_version="1", who=dict)
