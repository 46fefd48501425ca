//! A real GCS emulator as a process of its own: fake-gcs-server, installed below `target/emulators/gcs` by `cargo xtask emulators`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forebay::store::StoreOptions;

const BINARY: &str = "fake-gcs-server-linux-amd64";

/// A running emulator with one bucket, ended on drop.
pub(crate) struct FakeGcs {
    child: Child,
    address: String,
}

impl FakeGcs {
    /// Starts one on a free port, with an empty bucket.
    ///
    /// Nothing when `FOREBAY_SKIP_EMULATORS=1` is set and there is no emulator; without the variable that is a failure.
    pub(crate) fn start(bucket: &str) -> Option<Self> {
        let Some(binary) = find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/emulators/gcs"), 8) else {
            if std::env::var("FOREBAY_SKIP_EMULATORS").is_ok_and(|value| value == "1") {
                return None;
            }
            panic!(
                "no {BINARY} below target/emulators/gcs: run `cargo xtask emulators`, or set FOREBAY_SKIP_EMULATORS=1"
            );
        };
        // The port may be taken by somebody else between the two binds: then the emulator exits, and another is tried.
        (0..5)
            .find_map(|_| Self::try_start(&binary, bucket))
            .map_or_else(|| panic!("{BINARY} did not start, or refused a new bucket"), Some)
    }

    fn try_start(binary: &Path, bucket: &str) -> Option<Self> {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("this machine has a free port").port();
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(binary);
        command.args(["-scheme", "http", "-host", "127.0.0.1", "-backend", "memory", "-log-level", "error"]);
        // It answers 404 to everything if this is not the Host header, port included.
        command.args([
            "-port",
            &port.to_string(),
            "-public-host",
            &address,
            "-external-url",
            &format!("http://{address}"),
        ]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the emulator can be started");
        let mut this = Self { child, address };
        let body = format!("{{\"name\":\"{bucket}\"}}");
        for _ in 0..200 {
            match this.post("/storage/v1/b?project=test", "application/json", body.as_bytes()) {
                Ok(200) => return Some(this),
                // Somebody else's server.
                Ok(_) => return None,
                Err(_) if this.child.try_wait().expect("the child is ours").is_some() => return None,
                // Nothing tells when it listens but asking.
                Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
            }
        }
        None
    }

    /// Puts an object into a bucket.
    pub(crate) fn put(&self, bucket: &str, key: &str, content: &[u8]) {
        let name: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}");
        assert_eq!(self.post(&path, "application/octet-stream", content).expect("the emulator answers"), 200, "{key}");
    }

    /// Where it answers.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Options that lead every `gs://` URL here.
    pub(crate) fn options(&self) -> StoreOptions {
        StoreOptions::new().environment(false).endpoint("gs", self.url())
    }

    fn post(&self, path: &str, kind: &str, body: &[u8]) -> std::io::Result<u16> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
            self.address
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let head = String::from_utf8_lossy(&answer);
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| std::io::Error::other("no status"))
    }
}

impl Drop for FakeGcs {
    fn drop(&mut self) {
        // Fails only if it has already ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Looks for the emulator, wherever the installer put it.
fn find(folder: &Path, depth: usize) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let here = entries.iter().find(|path| path.file_name().is_some_and(|name| name == BINARY) && path.is_file());
    here.cloned()
        .or_else(|| entries.iter().filter(|path| depth > 0 && path.is_dir()).find_map(|path| find(path, depth - 1)))
}
