"""Apps whose lifespan goes wrong, each in its own way."""


async def _serve(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def raises(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        raise ValueError("weights are corrupt")


async def says_failed(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no weights in /srv"})


async def says_failed_and_raises(scope, receive, send):
    """As Starlette does."""
    if scope["type"] == "lifespan":
        await receive()
        try:
            raise MemoryError
        except BaseException:
            await send({"type": "lifespan.startup.failed", "message": "Traceback ..."})
            raise


async def has_none(scope, receive, send):
    assert scope["type"] == "http"
    await _serve(scope, receive, send)


async def never_shuts_down(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise RuntimeError("shutdown failed")
    await _serve(scope, receive, send)
