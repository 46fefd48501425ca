//! A web server with one object that takes its time.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// Answers GETs of ranges, one connection beside the other, until it is dropped.
pub(crate) struct SlowServer {
    _runtime: Runtime,
    /// Where the object is.
    pub(crate) url: String,
}

/// How each answer to a GET is held back: the part of the object that comes first once as long, the next twice, and so on, as by a store
/// that does one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Before its first byte.
    pub(crate) first_byte: Duration,
    /// Behind the first half of its body.
    pub(crate) half: Duration,
    /// Bytes of a part.
    pub(crate) part: usize,
}

impl SlowServer {
    pub(crate) fn start(content: Vec<u8>, pace: Pace) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("this machine has a free port");
        let url = format!("http://{}/object", listener.local_addr().expect("it is bound"));
        let content: Arc<[u8]> = content.into();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, content.clone(), pace));
            }
        });
        Self { _runtime: runtime, url }
    }
}

/// Serves a connection to its end.
async fn serve(stream: TcpStream, content: Arc<[u8]>, pace: Pace) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut stream = BufStream::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.ok()? == 0 {
                return None;
            }
        }
        let head = head.to_ascii_lowercase();
        let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
        let size = content.len();
        let (status, from, to) = match range {
            Some((first, last)) => ("206 Partial Content", first.parse().ok()?, last.parse::<usize>().ok()? + 1),
            None => ("200 OK", 0, size),
        };
        let mut answer = format!("HTTP/1.1 {status}\r\nETag: \"one\"\r\nContent-Length: {}\r\n", to - from);
        if range.is_some() {
            answer += &format!("Content-Range: bytes {from}-{}/{size}\r\n", to - 1);
        }
        answer += "\r\n";
        if head.starts_with("head") {
            stream.write_all(answer.as_bytes()).await.ok()?;
            stream.flush().await.ok()?;
            continue;
        }
        let turn = 1 + (from / pace.part) as u32;
        tokio::time::sleep(pace.first_byte * turn).await;
        stream.write_all(answer.as_bytes()).await.ok()?;
        let half = (from + to) / 2;
        stream.write_all(&content[from..half]).await.ok()?;
        stream.flush().await.ok()?;
        tokio::time::sleep(pace.half * turn).await;
        stream.write_all(&content[half..to]).await.ok()?;
        stream.flush().await.ok()?;
    }
}
