//! Streams in a WebSocket: the first byte of every message is the number of its stream.
//!
//! These are the subprotocols `v4.channel.k8s.io` and `v5.channel.k8s.io`, which `kubectl` (1.30 and later),
//! kube-rs and the Python client speak. The fifth adds that a client can close a stream:
//! message `[255, number]`.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message as Frame};
use tokio_util::sync::CancellationToken;

use super::{Ends, LINGER, Message, Outgoing, QUEUE_LEN, Stream};

/// Longest message that is taken.
const MESSAGE_LEN_MAX: usize = 4 << 20;
/// Stands for "close the stream that the next byte names".
const CLOSE: u8 = 255;
/// What a tunnel holds in each direction.
const TUNNEL_LEN: usize = 64 << 10;

async fn open<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LEN_MAX))
        .max_frame_size(Some(MESSAGE_LEN_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves a connection of `count` streams; it ends when all that was made of it is dropped.
pub async fn serve<T>(io: T, count: u8) -> (Vec<Stream>, Ends)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, source) = open(io).await.split();
    let (queue, mut messages) = mpsc::channel(QUEUE_LEN);
    let gone = CancellationToken::new();
    let written = CancellationToken::new();
    let mut senders = Vec::new();
    let streams = (0..count).map(|id| {
        let (sender, incoming) = mpsc::channel(QUEUE_LEN);
        senders.push(Some(sender));
        let outgoing = Outgoing { id: id.into(), queue: queue.clone() };
        Stream { incoming, outgoing, gone: gone.child_token() }
    });
    let streams = streams.collect();

    let done = written.clone();
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            let frame = match message {
                // That a stream ends is not told: the last one ends the connection.
                Message::Data { data, last: true, .. } if data.is_empty() => continue,
                Message::Data { stream, data, .. } => numbered(stream as u8, &data),
                Message::Raw(bytes) => bytes,
            };
            if sink.send(Frame::Binary(frame)).await.is_err() {
                break;
            }
        }
        let _ = sink.send(goodbye()).await;
        done.cancel();
    });
    let ends = Ends { _queue: queue, gone: gone.clone() };
    tokio::spawn(async move {
        let until = async {
            written.cancelled().await;
            // The client answers when it has read everything.
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            () = read(source, senders) => {}
            () = until => {}
        }
        gone.cancel();
    });
    (streams, ends)
}

async fn read(
    mut source: impl futures::Stream<Item = Result<Frame, Error>> + Unpin,
    mut senders: Vec<Option<mpsc::Sender<Bytes>>>,
) {
    while let Some(Ok(frame)) = source.next().await {
        let data: Bytes = match frame {
            Frame::Binary(data) => data,
            Frame::Text(text) => text.into(),
            Frame::Close(_) => return,
            _ => continue,
        };
        match take(&data) {
            Some(Taken::Close(id)) => {
                if let Some(sender) = senders.get_mut(usize::from(id)) {
                    *sender = None;
                }
            }
            Some(Taken::Data(id, data)) if !data.is_empty() => {
                if let Some(Some(sender)) = senders.get(usize::from(id)) {
                    // Nobody reads any more: that is for the stream's owner to tell.
                    let _ = sender.send(data).await;
                }
            }
            _ => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Data(u8, Bytes),
    Close(u8),
}

fn take(message: &Bytes) -> Option<Taken> {
    match *message.first()? {
        CLOSE => message.get(1).map(|id| Taken::Close(*id)),
        id => Some(Taken::Data(id, message.slice(1..))),
    }
}

/// The end of a connection on which nothing went wrong; clients report any other as an error.
fn goodbye() -> Frame {
    Frame::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

fn numbered(stream: u8, data: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + data.len());
    message.put_u8(stream);
    message.put_slice(data);
    message.freeze()
}

/// A plain connection inside of a WebSocket, however its bytes are spread over messages.
pub fn tunnel<T>(io: T) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(TUNNEL_LEN);
    tokio::spawn(async move {
        let (mut sink, mut source) = open(io).await.split();
        let (mut reader, mut writer) = tokio::io::split(ours);
        let outward = async {
            let mut buffer = BytesMut::with_capacity(TUNNEL_LEN);
            while reader.read_buf(&mut buffer).await.is_ok_and(|len| len > 0) {
                if sink.send(Frame::Binary(buffer.split().freeze())).await.is_err() {
                    return;
                }
                buffer.reserve(TUNNEL_LEN / 2);
            }
            let _ = sink.send(goodbye()).await;
        };
        let inward = async {
            while let Some(Ok(frame)) = source.next().await {
                let result = match frame {
                    Frame::Binary(data) => writer.write_all(&data).await,
                    Frame::Close(_) => break,
                    _ => Ok(()),
                };
                if result.is_err() {
                    return;
                }
            }
            let _ = writer.shutdown().await;
        };
        tokio::join!(outward, inward);
    });
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_stream() {
        let check = |message: &'static [u8], expected: Option<Taken>| {
            assert_eq!(take(&Bytes::from_static(message)), expected, "{message:?}");
        };
        check(b"", None);
        check(b"\x00hello", Some(Taken::Data(0, "hello".into())));
        check(b"\x04", Some(Taken::Data(4, Bytes::new())));
        check(b"\xff\x00", Some(Taken::Close(0)));
        check(b"\xff", None);
        assert_eq!(numbered(2, b"x"), &b"\x02x"[..]);
    }

    #[tokio::test]
    async fn streams_end_one_by_one_and_with_the_connection() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let (mut streams, ends) = serve(server, 2).await;
        for message in [&b"\x00a"[..], b"\x01b", b"\xff\x00", b"\x01c", b"\x07ignored"] {
            client.send(Frame::Binary(Bytes::from_static(message))).await.unwrap();
        }
        assert_eq!(streams[0].incoming.recv().await.unwrap(), "a");
        assert_eq!(streams[0].incoming.recv().await, None);
        assert_eq!(streams[1].incoming.recv().await.unwrap(), "b");
        assert_eq!(streams[1].incoming.recv().await.unwrap(), "c");
        streams[1].outgoing.send("d".into()).await;
        drop((streams, ends));
        assert_eq!(client.next().await.unwrap().unwrap(), Frame::Binary("\x01d".into()));
        assert_eq!(client.next().await.unwrap().unwrap(), goodbye());
    }
}
