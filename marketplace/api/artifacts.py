"""Artifacts: bytes known by their SHA-256, sent and fetched in pieces that may be cut off anywhere."""

from collections.abc import Iterator
from typing import Any

from django.http import HttpResponse, StreamingHttpResponse, UnreadablePostError
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from marketplace import access
from marketplace.api import artifact_shapes, shapes
from marketplace.api.invoices import AnyAccepted
from marketplace.api.pages import checked, queried
from marketplace.api.views import actor_of, naming
from marketplace.errors import BadOrder, NotFound
from marketplace.models import Project
from provisioning import artifacts
from provisioning.models import Artifact, ArtifactState

READ_BYTES = 1 << 20
OFFSET = OpenApiParameter(
    "Upload-Offset", OpenApiTypes.INT, OpenApiParameter.HEADER, description="the first byte of the body, 0 by default"
)
LENGTH = OpenApiParameter(
    "Upload-Length", OpenApiTypes.INT, OpenApiParameter.HEADER,
    description="the size of the whole artifact; by default what offset and body come to",
)  # fmt: skip
RANGE = OpenApiParameter("Range", OpenApiTypes.STR, OpenApiParameter.HEADER, description="`bytes=N-`: from byte N on")
KNOWN = {200: artifact_shapes.ArtifactAnswer, shapes.REFUSED: shapes.Problem}


class ArtifactsMissing(APIView):
    """Which of many artifacts must still be sent."""

    @extend_schema(
        operation_id="find_missing_artifacts",
        request=artifact_shapes.ArtifactsAsked,
        responses={200: artifact_shapes.ArtifactsMissingAnswer, shapes.REFUSED: shapes.Problem},
    )
    def post(self, request: Request) -> Response:
        """Tell which of these artifacts the project does not have whole. Nothing is changed."""
        queried(request)
        asked = checked(artifact_shapes.ArtifactsAsked, request.data)
        with naming("project"):
            project = access.project_for(actor_of(request), asked.get("project"), verb="artifact.view")
        return Response({"missing": artifacts.missing(project_id=project.pk, sha256s=asked["sha256s"])})


class ArtifactDetail(APIView):
    """One artifact of a project."""

    content_negotiation_class = AnyAccepted

    def head(self, request: Request, artifact_id: str) -> HttpResponse:
        """Tell how much of an artifact is here, in the headers Upload-Offset and Upload-Length."""
        row = _found(_project(request, "artifact.view"), artifact_id)
        return _with_offset(HttpResponse(content_type="application/octet-stream"), row)

    @extend_schema(
        operation_id="download_artifact",
        parameters=[artifact_shapes.ArtifactQuery, RANGE],
        responses={(200, "application/octet-stream"): OpenApiTypes.BINARY, shapes.REFUSED: shapes.Problem},
    )
    def get(self, request: Request, artifact_id: str) -> HttpResponseBase:
        """Download an artifact, or the rest of it from a byte on."""
        row = _found(_project(request, "artifact.view"), artifact_id)
        if row.state != ArtifactState.STORED:
            raise NotFound
        asked = artifacts.first_byte(request.headers.get("Range", ""), size_bytes=row.size_bytes)
        offset = asked or 0
        pieces = artifacts.pieces_of(project_id=row.project_id, sha256=artifact_id, offset=offset)
        status = 200 if asked is None else 206
        answer = StreamingHttpResponse(pieces, status=status, content_type="application/octet-stream")
        answer["Content-Length"] = str(row.size_bytes - offset)
        answer["Content-Disposition"] = f'attachment; filename="{artifact_id}"'
        answer["ETag"] = f'"{artifact_id}"'
        if asked is not None:
            answer["Content-Range"] = f"bytes {offset}-{max(offset, row.size_bytes - 1)}/{row.size_bytes}"
        return answer

    @extend_schema(
        operation_id="upload_artifact",
        parameters=[artifact_shapes.ArtifactQuery, OFFSET, LENGTH],
        request={"application/octet-stream": OpenApiTypes.BINARY},
        responses={201: artifact_shapes.ArtifactAnswer, 202: artifact_shapes.ArtifactAnswer, **KNOWN},
    )
    def put(self, request: Request, artifact_id: str) -> HttpResponse:
        """Send an artifact, or go on with it: 201 once it is stored, 200 where it was already, 202 while bytes miss."""
        project = _project(request, "artifact.change")
        length = int(request.META.get("CONTENT_LENGTH") or 0)
        offset = _number(request, "Upload-Offset", default=0)
        size_bytes = _number(request, "Upload-Length", default=offset + length)
        was = artifacts.find(project_id=project.pk, sha256=artifact_id)
        row = artifacts.receive(
            project_id=project.pk, sha256=artifact_id, size_bytes=size_bytes, offset=offset, pieces=_pieces(request),
            at=timezone.now(),
        )  # fmt: skip
        is_stored = row.state == ArtifactState.STORED
        is_old = is_stored and was is not None and was.state == ArtifactState.STORED
        answer = Response(_shown(row), status=200 if is_old else 201 if is_stored else 202)
        return _with_offset(answer, row)


def _project(request: Request, verb: str) -> Project:
    query = queried(request, artifact_shapes.ArtifactQuery)
    with naming("project"):
        return access.project_for(actor_of(request), query.get("project"), verb=verb)


def _found(project: Project, sha256: str) -> Artifact:
    row = artifacts.find(project_id=project.pk, sha256=sha256)
    if row is None:
        raise NotFound
    return row


def _with_offset(answer: HttpResponse, row: Artifact) -> HttpResponse:
    answer["Upload-Offset"] = str(artifacts.offset_of(row))
    answer["Upload-Length"] = str(row.size_bytes)
    return answer


def _number(request: Request, header: str, *, default: int) -> int:
    given = request.headers.get(header)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= 16):
        raise BadOrder(header, gettext("The header %(header)s is a whole number of bytes.") % {"header": header})
    return int(given)


def _pieces(request: Request) -> Iterator[bytes]:
    """Yield the body as it comes. What breaks off has ended: the next request goes on from there."""
    try:
        while piece := request._request.read(READ_BYTES):
            yield piece
    except UnreadablePostError:
        return


def _shown(row: Artifact) -> dict[str, Any]:
    return {
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "state": row.state,
        "offset": artifacts.offset_of(row),
    }
