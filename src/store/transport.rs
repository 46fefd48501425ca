//! The layer that every HTTP request of the object store clients passes: statuses and ranges are checked here, before any byte is used.
//!
//! The clients' own retries are off, because they append whatever a resumed request returns. So the responses that they would have retried must reach
//! our loop with their status and Retry-After: as a [`Refused`] or a [`WrongRange`] in the chain of sources.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

use super::retry::Refused;

/// The longest error page that is read, and how much of it is quoted.
const MAX_ERROR_PAGE: u64 = 16 << 10;
const MAX_QUOTE: usize = 200;

/// Creates clients that check their responses.
#[derive(Debug, Default)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Judge(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Judge(HttpClient);

impl HttpService for Judge {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let asked = request.headers().get("range").and_then(|range| range.to_str().ok()).map(str::to_owned);
            let response = self.0.execute(request).await?;
            let status = response.status().as_u16();
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            match status {
                200..300 => match asked {
                    Some(asked) if !answers(status, header("content-range"), &asked) => {
                        let got = header("content-range").map(str::to_owned);
                        Err(HttpError::new(HttpErrorKind::Decode, WrongRange { status, asked, got }))
                    }
                    _ => Ok(response),
                },
                // The clients give these a meaning of their own.
                304 | 401 | 403 | 404 | 409 | 412 => Ok(response),
                _ => {
                    let retry_after =
                        header("retry-after").and_then(|v| v.trim().parse().ok()).map(Duration::from_secs);
                    let length = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(u64::MAX);
                    let page = match length {
                        0..=MAX_ERROR_PAGE => response.into_body().bytes().await.unwrap_or_default(),
                        _ => Default::default(),
                    };
                    let detail = quote(&page);
                    Err(HttpError::new(HttpErrorKind::Unknown, Refused { status, retry_after, detail }))
                }
            }
        })
    }
}

/// Returns whether a response is for the bytes that were asked for: `bytes=0-9` and `bytes 0-9/20`.
fn answers(status: u16, content_range: Option<&str>, asked: &str) -> bool {
    let wanted = asked.strip_prefix("bytes=");
    let got = content_range.and_then(|range| range.strip_prefix("bytes ")?.split('/').next());
    status == 206 && wanted.is_some() && wanted == got.map(str::trim)
}

/// Returns the beginning of an error page, on one line.
fn quote(page: &[u8]) -> String {
    let text = String::from_utf8_lossy(page);
    let mut quoted: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_QUOTE).collect();
    if quoted.len() < text.trim().len() && quoted.chars().count() == MAX_QUOTE {
        quoted.push('…');
    }
    quoted
}

/// A response with bytes other than those asked for.
#[derive(Debug)]
pub(super) struct WrongRange {
    pub(super) status: u16,
    asked: String,
    got: Option<String>,
}

impl WrongRange {
    /// Returns whether the response is the whole object instead of a part: servers without range requests always answer so.
    pub(super) fn is_whole(&self) -> bool {
        self.status == 200
    }
}

impl fmt::Display for WrongRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asked for {}, answered with status {} and ", self.asked, self.status)?;
        match &self.got {
            Some(got) => write!(f, "Content-Range: {got}"),
            None => f.write_str("no Content-Range"),
        }
    }
}

impl std::error::Error for WrongRange {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_range_is_an_answer() {
        let cases = [
            (206, Some("bytes 0-9/20"), true),
            (206, Some("bytes 0-9/*"), true),
            (206, Some("bytes 0-8/20"), false),
            (206, Some("bytes 1-9/20"), false),
            (206, Some("0-9/20"), false),
            (206, None, false),
            (200, None, false),
            (200, Some("bytes 0-9/20"), false),
        ];
        for (status, content_range, expected) in cases {
            assert_eq!(answers(status, content_range, "bytes=0-9"), expected, "{status} {content_range:?}");
        }
    }

    #[test]
    fn error_pages_are_quoted_short_and_on_one_line() {
        assert_eq!(quote(b" <a>\n  b </a>"), "<a> b </a>");
        assert_eq!(quote(&[b'x'; 5000]).chars().count(), MAX_QUOTE + 1);
        assert_eq!(quote(b""), "");
    }
}
