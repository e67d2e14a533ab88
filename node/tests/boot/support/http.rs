//! The least of an HTTP/1.1 client: it must not be cleverer than firmware is.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    /// The body of a success.
    pub fn ok_text(self) -> String {
        let text = String::from_utf8(self.body).unwrap();
        assert_eq!(self.status, 200, "{text}");
        text
    }
}

pub struct Connection(pub BufStream<TcpStream>);

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        Self(BufStream::new(TcpStream::connect(address).await.unwrap()))
    }

    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &[u8],
    ) -> Answer {
        self.begin(method, path, headers, body).await;
        self.answer(method).await
    }

    pub async fn begin(&mut self, method: &str, path: &str, headers: &[&str], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: node\r\n");
        for header in headers {
            head += &format!("{header}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        self.0.write_all(head.as_bytes()).await.unwrap();
        // A server may refuse before it has read everything.
        let _ = self.0.write_all(body).await;
        let _ = self.0.flush().await;
    }

    /// Waits until the answer begins.
    pub async fn begun(&mut self) {
        assert!(!self.0.fill_buf().await.unwrap().is_empty());
    }

    pub async fn answer(&mut self, method: &str) -> Answer {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await.unwrap();
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines[1..]
            .iter()
            .map(|line| line.split_once(": ").unwrap())
            .map(|(key, value)| (key.to_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        if method != "HEAD" && status != 304 {
            answer.body = vec![0; answer.header("content-length").parse().unwrap()];
            self.0.read_exact(&mut answer.body).await.unwrap();
        }
        answer
    }
}
