"""What is special about the calls of the API."""

from typing import Final

from smalti.rpc.places import CallKinds


def _calls(service: str, *names: str) -> tuple[str, ...]:
    return tuple(f"/smalti.v1.{service}/{name}" for name in names)


KINDS: Final = CallKinds(
    endless=_calls("ImageService", "WatchJob") + _calls("BatchService", "WatchBatch"),
    kept=_calls("ImageService", "GetJob", "CancelJob", "DeleteJob")
    + _calls("BatchService", "GetBatch", "CancelBatch", "DeleteBatch"),
    small=_calls(
        "ImageService",
        *("GetJob", "ListJobs", "CancelJob", "DeleteJob", "WatchJob", "DownloadImages"),
        *("ListModels", "GetModel"),
    )
    + _calls(
        "FileService",
        *("CreateFile", "FinishFile", "ComposeFile", "GetFile", "ListFiles", "DeleteFile", "DownloadFile"),
    )
    + _calls(
        "BatchService",
        *("CreateBatch", "GetBatch", "ListBatches", "WatchBatch", "PauseBatch", "ResumeBatch"),
        *("CancelBatch", "DeleteBatch", "ListBatchFiles", "DownloadBatchFile"),
    ),
)
"""Only CreateImages may bring a picture, and only UploadFile content."""
