//! A web server with one object, which can be replaced.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The object's bytes and ETag.
type Content = (Vec<u8>, &'static str);

/// Answers HEAD and GET, ranges and If-Match, one request a connection. It ends with the process.
pub(crate) struct Web {
    address: String,
    content: Arc<Mutex<Content>>,
}

impl Web {
    pub(crate) fn start(bytes: Vec<u8>, etag: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("this machine has a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let content = Arc::new(Mutex::new((bytes, etag)));
        let shared = content.clone();
        let serve = move || listener.incoming().flatten().for_each(|stream| _ = answer(stream, &shared));
        #[expect(clippy::disallowed_methods, reason = "it waits for requests as long as there are any")]
        let thread = std::thread::Builder::new().name("web".into()).spawn(serve);
        drop(thread.expect("a thread"));
        Self { address, content }
    }

    pub(crate) fn replace(&self, bytes: Vec<u8>, etag: &'static str) {
        *self.content.lock().expect("no answer panics") = (bytes, etag);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/shard", self.address)
    }
}

fn answer(stream: TcpStream, content: &Mutex<Content>) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let headers: Vec<String> =
        lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).collect::<Result<_, _>>()?;
    let header = |name: &str| {
        let named = |line: &&String| line.to_ascii_lowercase().starts_with(&format!("{name}: "));
        headers.iter().find(named).map(|line| line[name.len() + 2..].to_owned())
    };
    let (bytes, etag) = content.lock().expect("no answer panics").clone();
    let range = header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse::<usize>().ok()?..last.parse::<usize>().ok()? + 1)
    });
    let (status, body, extra) = match range {
        _ if header("if-match").is_some_and(|listed| listed != etag) => ("412 Changed", 0..0, String::new()),
        Some(range) if range.end <= bytes.len() => {
            let found = format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, bytes.len());
            ("206 Partial", range, found)
        }
        Some(_) => ("416 Behind the end", 0..0, String::new()),
        None => ("200 OK", 0..bytes.len(), String::new()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nETag: {etag}\r\n{extra}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    (&stream).write_all(head.as_bytes())?;
    if request.starts_with("GET") { (&stream).write_all(&bytes[body]) } else { Ok(()) }
}
