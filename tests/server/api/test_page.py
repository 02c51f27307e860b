"""The page is served under a policy that lets no stranger's code run."""

import httpx

from tests.server.live import LiveServer


def test_the_page_and_its_parts_are_served_with_a_strict_policy(live: LiveServer) -> None:
    with live.client("") as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-cache"


def test_an_unchanged_part_is_not_sent_twice(live: LiveServer) -> None:
    with live.client("") as client:
        first = client.get("/web/index.html")
        again = client.get("/web/index.html", headers={"If-None-Match": first.headers["etag"]})
    assert first.status_code == 200
    assert again.status_code == 304


def test_nothing_outside_the_page_can_be_fetched(live: LiveServer) -> None:
    for path in (
        "/web/../settings.py",
        "/web/%2e%2e/settings.py",
        "/web//etc/passwd",
        "/web/..%5csettings.py",
    ):
        with httpx.Client(base_url=live.url) as client:
            assert client.get(path).status_code == 404


def test_the_api_describes_itself_without_foreign_scripts(live: LiveServer) -> None:
    with live.client("") as client:
        described = client.get("/openapi.json").json()
        assert "/v1/chat/completions" in described["paths"]
        assert client.get("/docs").status_code == 404
