//! A local server that fails on demand, and tests that reads through it give the right bytes or an error, never other bytes.

#![cfg(all(feature = "gcs", feature = "s3", feature = "http"))]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;

const SIZE: usize = 1000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 7 + i / 256) as u8).collect()
}

/// How one GET is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reply {
    Good,
    Status(u16),
    /// A status with a Retry-After of zero.
    Busy(u16),
    /// Closed before the response's head.
    Reset,
    /// This many bytes, then closed.
    Cut(usize),
    /// This many bytes, then silence.
    Stall(usize),
    /// Silence before the response's head.
    Silence,
    /// Status 200 and the whole object.
    Whole,
    /// 206 with the range one byte later than asked.
    Shifted,
    /// 206 for the range asked, whose length and body are shorter by this much.
    Short(usize),
    /// 206 for the range asked, with more bytes than the range.
    Long,
    /// The object was replaced by one of the same length.
    Replaced,
    /// The same, in a response without an ETag.
    ReplacedUntagged,
    /// The right bytes, in a response without an ETag.
    Untagged,
    /// The object was replaced by a longer one.
    Grown,
}
use Reply::*;

/// Returns whether some response of the script never ends.
fn is_silent(script: &[Reply]) -> bool {
    script.iter().any(|reply| matches!(reply, Silence | Stall(_)))
}

struct Server {
    address: String,
    state: Arc<State>,
}

struct State {
    script: Mutex<VecDeque<Reply>>,
    /// Method, Range and If-Match of each request.
    seen: Mutex<Vec<(String, String, String)>>,
    etag: bool,
}

impl Server {
    /// Answers GETs by the script, and correctly once it has ended.
    async fn start(script: &[Reply], etag: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state =
            Arc::new(State { script: Mutex::new(script.iter().copied().collect()), seen: Mutex::default(), etag });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, state }
    }

    fn options(&self) -> StoreOptions {
        let ms = Duration::from_millis;
        // Only a server that is going to be silent is not waited for: a busy machine may well take its time.
        let silent = is_silent(self.state.script.lock().unwrap().make_contiguous());
        StoreOptions::new()
            .environment(false)
            .backoff(ms(1), ms(2))
            .retries(4)
            .stall_timeout(ms(if silent { 250 } else { 30_000 }))
            .endpoint("gs", format!("http://{}", self.address))
            .endpoint("s3", format!("http://{}", self.address))
            .config("s3", "aws_access_key_id", "test")
            .config("s3", "aws_secret_access_key", "test")
    }

    fn url(&self, scheme: &str) -> String {
        match scheme {
            "http" => format!("http://{}/bucket/key", self.address),
            _ => format!("{scheme}://bucket/key"),
        }
    }

    fn gets(&self) -> Vec<(String, String)> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter().filter(|(method, ..)| method == "GET").map(|(_, range, tag)| (range.clone(), tag.clone())).collect()
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let field = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
            line.map(|line| line[name.len() + 2..].to_owned()).unwrap_or_default()
        };
        let method = head.split(' ').next()?.to_owned();
        let range = field("range");
        state.seen.lock().unwrap().push((method.clone(), range.clone(), field("if-match")));
        let reply = match &*method {
            "HEAD" => Good,
            _ => state.script.lock().unwrap().pop_front().unwrap_or(Good),
        };
        let (mut body, mut tag) = (content(), "\"one\"");
        match reply {
            Replaced | ReplacedUntagged => (body, tag) = (vec![0xaa; SIZE], "\"two\""),
            Grown => (body, tag) = (vec![0xbb; 2 * SIZE], "\"one\""),
            _ => {}
        }
        let size = body.len();
        let (mut start, mut end) = (0, size);
        let partial = range.strip_prefix("bytes=").and_then(|range| {
            let (low, high) = range.split_once('-')?;
            (start, end) = (low.parse().ok()?, high.parse::<usize>().ok()? + 1);
            Some(())
        });
        let mut common = "Last-Modified: Sun, 22 Nov 2026 10:00:00 GMT\r\n".to_owned();
        if matches!(reply, Replaced | ReplacedUntagged) {
            common = "Last-Modified: Sun, 22 Nov 2026 10:00:01 GMT\r\n".to_owned();
        }
        if state.etag && !matches!(reply, Untagged | ReplacedUntagged) {
            common += &format!("ETag: {tag}\r\n");
        }
        let send = async |stream: &mut TcpStream, status: &str, headers: String, length: usize, body: &[u8]| {
            let head = format!("HTTP/1.1 {status}\r\n{common}{headers}Content-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.ok()?;
            stream.write_all(body).await.ok()?;
            stream.flush().await.ok()
        };
        let found = format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1);
        match reply {
            _ if method == "HEAD" => send(&mut stream, "200 OK", String::new(), size, b"").await?,
            Status(status) => send(&mut stream, &format!("{status} No"), String::new(), 4, b"why?").await?,
            Busy(status) => send(&mut stream, &format!("{status} No"), "Retry-After: 0\r\n".into(), 0, b"").await?,
            Reset => {
                stream.set_zero_linger().ok()?;
                return None;
            }
            Silence => std::future::pending().await,
            Whole => send(&mut stream, "200 OK", String::new(), size, &body).await?,
            _ if partial.is_none() => send(&mut stream, "200 OK", String::new(), size, &body).await?,
            Good | Untagged | Replaced | ReplacedUntagged | Grown => {
                send(&mut stream, "206 Partial", found, end - start, &body[start..end]).await?;
            }
            Cut(bytes) | Stall(bytes) => {
                let bytes = bytes.min(end - start);
                send(&mut stream, "206 Partial", found, end - start, &body[start..start + bytes]).await?;
                if let Stall(_) = reply {
                    std::future::pending::<()>().await;
                }
                return None;
            }
            Shifted => {
                let found = format!("Content-Range: bytes {}-{end}/{size}\r\n", start + 1);
                send(&mut stream, "206 Partial", found, end - start, &body[start + 1..=end]).await?;
            }
            Short(less) => {
                send(&mut stream, "206 Partial", found, end - start - less, &body[start..end - less]).await?;
            }
            Long => send(&mut stream, "206 Partial", found, end - start + 5, &body[start..end + 5]).await?,
        }
    }
}

/// Answers the first line of a request with a status and a body, or with silence.
type Answer = dyn Fn(&str) -> Option<(&'static str, String)> + Send + Sync;

/// A server that answers by a function.
async fn answering(answer: impl Fn(&str) -> Option<(&'static str, String)> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer: Arc<Answer> = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_all(stream, Arc::clone(&answer)));
        }
    });
    address
}

async fn answer_all(mut stream: TcpStream, answer: Arc<Answer>) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let Some((status, body)) = answer(head.lines().next()?) else { std::future::pending().await };
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await.ok()?;
    }
}

/// Reads bytes 100 to 900 through a server that answers by the script.
///
/// If the script contains silence, a response that is only delayed by a busy machine may also count as silence, and then there is one try more than
/// the script has faults. Such a read is repeated. A read that always takes more tries is returned as it is.
async fn read(scheme: &str, etag: bool, script: &[Reply]) -> (Result<Bytes>, Vec<(String, String)>, Transfers) {
    let mut done = read_once(scheme, etag, script).await;
    for _ in 0..4 {
        if !is_silent(script) || done.2.retries <= script.len() as u64 {
            break;
        }
        done = read_once(scheme, etag, script).await;
    }
    done
}

async fn read_once(scheme: &str, etag: bool, script: &[Reply]) -> (Result<Bytes>, Vec<(String, String)>, Transfers) {
    let server = Server::start(script, etag).await;
    let store = server.options().build();
    let object = store.head(&server.url(scheme)).await.unwrap();
    assert_eq!((object.size, object.etag.is_some()), (SIZE as u64, etag));
    let read = store.read(&object, 100..900).await;
    if let Ok(bytes) = &read {
        assert_eq!(*bytes, content()[100..900], "{scheme} {etag} {script:?}: WRONG BYTES");
    }
    (read, server.gets(), store.transfers())
}

/// GCS always sends ETags; the other two also work without.
const CLIENTS: [(&str, bool); 5] = [("gs", true), ("s3", true), ("s3", false), ("http", true), ("http", false)];

#[tokio::test]
async fn faults_that_pass_end_in_the_right_bytes() {
    let scripts: &[&[Reply]] = &[
        &[],
        &[Status(503)],
        &[Status(500)],
        &[Status(429), Busy(503)],
        &[Status(408)],
        &[Reset],
        &[Silence],
        &[Cut(0)],
        &[Cut(300)],
        &[Stall(300)],
        &[Short(10)],
        &[Shifted],
        &[Cut(300), Status(503), Cut(200), Reset],
        &[Cut(300), Whole],
        &[Cut(300), Shifted],
        &[Cut(300), Short(7)],
    ];
    for (scheme, etag) in CLIENTS {
        for script in scripts {
            let (read, gets, moved) = read(scheme, etag, script).await;
            assert!(read.is_ok(), "{scheme} {etag} {script:?}: {read:?}");
            assert_eq!(moved.retries, script.len() as u64, "{scheme} {etag} {script:?}");
            assert_eq!(gets[0].0, "bytes=100-899", "{script:?}");
            assert!(
                gets.iter().all(|(range, tag)| range.starts_with("bytes=") && (tag == "\"one\"") == etag),
                "{gets:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_broken_read_goes_on_from_the_byte_reached_with_a_request_of_its_own() {
    for (scheme, etag) in CLIENTS {
        for script in [[Cut(300), Cut(50)], [Stall(300), Stall(50)], [Short(500), Short(450)]] {
            let (read, gets, _) = read(scheme, etag, &script).await;
            read.unwrap();
            let ranges: Vec<_> = gets.iter().map(|(range, _)| &**range).collect();
            assert_eq!(ranges, ["bytes=100-899", "bytes=400-899", "bytes=450-899"], "{scheme} {script:?}");
        }
    }
}

#[tokio::test]
async fn faults_that_stay_end_in_an_error_that_says_where() {
    let cases = [
        (Status(503), ErrorKind::Transfer, 5, "why?"),
        (Reset, ErrorKind::Transfer, 5, "5 tries"),
        (Shifted, ErrorKind::Transfer, 5, "Content-Range: bytes 101-900/1000"),
        (Short(800), ErrorKind::Transfer, 5, "0 of the 800 bytes"),
        (Status(403), ErrorKind::Access, 1, "access refused"),
        (Status(404), ErrorKind::NotFound, 1, "no such object"),
        (Status(400), ErrorKind::Config, 1, "status 400, why?"),
        (Status(416), ErrorKind::Config, 1, "status 416"),
        (Status(501), ErrorKind::Config, 1, "status 501"),
        (Whole, ErrorKind::Config, 1, "whole objects only"),
    ];
    for (scheme, etag) in CLIENTS {
        for (reply, kind, tries, word) in cases {
            let (read, gets, _) = read(scheme, etag, &[reply; 9]).await;
            let error = read.unwrap_err();
            let text = error.to_string();
            assert_eq!((error.kind(), gets.len()), (kind, tries), "{scheme} {etag} {reply:?}: {text}");
            assert!(text.contains(word), "{scheme} {etag} {reply:?}: {text}");
            assert_eq!(error.place().byte_offset, Some(100), "{text}");
            assert_eq!(error.place().stage.as_deref(), Some("read"));
            assert!(error.place().url.as_ref().unwrap().ends_with("bucket/key"));
        }
    }
}

#[tokio::test]
async fn a_server_that_stays_silent_is_given_up_in_the_end() {
    let error = read("http", true, &[Silence; 9]).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transfer, "{error}");
    // Not counted at the server: it may not have come to the last request when that is given up.
    for part in ["nothing was received for 250ms", "after 5 tries"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn an_object_that_changed_is_an_error_and_not_a_mixture() {
    for (scheme, etag) in CLIENTS {
        for script in [&[Replaced][..], &[Cut(300), Replaced], &[Grown], &[Cut(300), Grown], &[Status(412)]] {
            let (read, gets, _) = read(scheme, etag, script).await;
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{scheme} {etag} {script:?}: {error}");
            assert!(error.to_string().contains("list it again"), "{error}");
            assert_eq!(gets.len(), script.len());
        }
    }
}

#[tokio::test]
async fn an_answer_without_the_etag_that_was_listed_is_told_by_its_time() {
    for scheme in ["s3", "http"] {
        let (good, ..) = read(scheme, true, &[Untagged]).await;
        good.unwrap();
        let error = read(scheme, true, &[ReplacedUntagged]).await.0.unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("written again"), "{error}");
    }
    let server = Server::start(&[Untagged], true).await;
    let store = server.options().build();
    let object = store.head(&server.url("s3")).await.unwrap();
    // As a listing has it.
    let finer = Object { modified: object.modified.map(|time| time + 123_000_000), ..object };
    assert_eq!(store.read(&finer, 100..900).await.unwrap(), content()[100..900]);
}

#[tokio::test]
async fn bytes_beyond_those_asked_for_are_never_returned() {
    for (scheme, etag) in CLIENTS {
        let error = read(scheme, etag, &[Long; 9]).await.0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transfer);
        assert!(error.to_string().contains("more than the 800 bytes"), "{error}");
    }
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_allowed_and_a_failed_one_frees_its_turn() {
    let server = Server::start(&[Reset, Status(503), Silence], true).await;
    let store = server.options().concurrency(1).build();
    let object = store.head(&server.url("http")).await.unwrap();
    let reads = (0..8u64).map(|i| store.read(&object, i * 100..i * 100 + 50));
    for (i, read) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(read.unwrap(), content()[i * 100..i * 100 + 50]);
    }
    // And one more for each answer that a busy machine keeps for as long as silence is borne.
    assert!(store.transfers().requests >= 1 + 8 + 3);
}

#[tokio::test]
async fn lacking_credentials_is_said_at_once_and_with_what_to_do() {
    // Nothing listens there, and nothing else can begin to: a machine without a metadata server.
    let silent = TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = silent.local_addr().unwrap();
    let server = Server::start(&[], true).await;
    let store = StoreOptions::new()
        .environment(false)
        .endpoint("s3", format!("http://{}", server.address))
        .config("s3", "aws_metadata_endpoint", format!("http://{nobody}"))
        .build();
    let error = store.head("s3://bucket/key").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Access);
    let text = error.to_string();
    assert!(text.starts_with("s3://bucket/key (list): no credentials") && text.contains("AWS_ACCESS_KEY_ID"), "{text}");
    assert_eq!(store.transfers().retries, 0);
    assert!(server.state.seen.lock().unwrap().is_empty(), "the store was not even asked");
}

#[tokio::test]
async fn renewing_credentials_that_stalls_once_is_tried_again() {
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let metadata = answering(move |line| {
        // Long expired, so that each request asks for others.
        let credentials =
            r#"{"AccessKeyId":"a","SecretAccessKey":"b","Token":"c","Expiration":"2020-01-01T00:00:00Z"}"#;
        if line.starts_with("PUT") {
            let mut asked = count.lock().unwrap();
            *asked += 1;
            return (*asked != 2).then(|| ("200 OK", "token".to_owned()));
        }
        let body = if line.contains("security-credentials/role") { credentials } else { "role" };
        Some(("200 OK", body.to_owned()))
    });
    let metadata = metadata.await;
    let server = Server::start(&[], true).await;
    let store = StoreOptions::new()
        .environment(false)
        .backoff(Duration::from_millis(1), Duration::from_millis(2))
        .stall_timeout(Duration::from_millis(500))
        .endpoint("s3", format!("http://{}", server.address))
        .config("s3", "aws_metadata_endpoint", format!("http://{metadata}"))
        .build();
    let object = store.head("s3://bucket/key").await.unwrap();
    assert_eq!(store.read(&object, 100..900).await.unwrap(), content()[100..900]);
    assert!(*asked.lock().unwrap() > 2 && store.transfers().retries > 0);
}

#[tokio::test]
async fn what_is_beside_a_missing_object_leaves_out_the_mark_of_its_folder() {
    let address = answering(|line| {
        if line.starts_with("HEAD") {
            return Some(("404 Not Found", String::new()));
        }
        let entry = |key: &str| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-11-22T10:00:00.000Z</LastModified><ETag>\"a\"</ETag>\
                 <Size>0</Size></Contents>"
            )
        };
        let listed = [entry("train/"), entry("train/a.tfrecord")].concat();
        Some(("200 OK", format!("<ListBucketResult><Name>bucket</Name>{listed}</ListBucketResult>")))
    });
    let store = Server { address: address.await, state: Server::start(&[], true).await.state }.options().build();
    let error = store.list(&["s3://bucket/train/b.tfrecord"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("one file at s3://bucket/train/: a.tfrecord"), "{error}");
}

#[tokio::test]
async fn unencrypted_endpoints_elsewhere_need_permission() {
    let options = StoreOptions::new().environment(false).endpoint("s3", "http://192.0.2.1:9000");
    let error = options.build().head("s3://b/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("allow_http"), "{error}");
}

#[tokio::test]
async fn a_setting_that_nobody_knows_is_named() {
    let error = StoreOptions::new().config("gs", "google_colour", "red").build().head("gs://b/k").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("google_colour"), "{error}");
}

#[tokio::test]
async fn a_glob_over_plain_http_is_refused() {
    let error = Store::new().list(&["http://127.0.0.1/a/*.rec"]).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("cannot be listed"), "{error}");
}
