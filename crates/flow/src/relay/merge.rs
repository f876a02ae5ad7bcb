//! Streams of several nodes → one stream in the order of time.
//!
//! The earliest head of all streams comes next. As long as one stream is silent nobody knows whether
//! it has something earlier, so heads wait for it, but not for longer than a hold time: who follows
//! wants to see what happens.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;
use tonic::Status;

/// A message that says when it was made: nanoseconds since 1970.
pub(super) trait Timed: Send + 'static {
    fn time_ns(&self) -> u64;
}

/// What a merge gives.
#[derive(Debug)]
pub(super) enum Merged<T> {
    /// The next message.
    Message(T),
    /// The stream of this node ended, by an error if there is one.
    Ended(String, Option<Status>),
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;
type Next<T> = BoxFuture<'static, (u64, Option<Result<T, Status>>, Stream<T>)>;

struct Head<T> {
    message: T,
    since: Instant,
    stream: Stream<T>,
}

/// The merge of any number of streams.
pub(super) struct Merge<T> {
    /// Streams that are to say what is next.
    asked: FuturesUnordered<Next<T>>,
    /// What others said.
    heads: BTreeMap<(u64, u64), Head<T>>,
    /// Names of nodes by the numbers of their streams.
    names: BTreeMap<u64, String>,
    next_stream: u64,
    hold: Duration,
}

impl<T: Timed> Merge<T> {
    /// A merge of no stream, whose heads wait for so long for silent streams.
    pub(super) fn new(hold: Duration) -> Self {
        Self {
            asked: FuturesUnordered::new(),
            heads: BTreeMap::new(),
            names: BTreeMap::new(),
            next_stream: 0,
            hold,
        }
    }

    /// Adds the stream of a node.
    pub(super) fn add(&mut self, node: String, stream: Stream<T>) {
        let number = self.next_stream;
        self.next_stream += 1;
        self.names.insert(number, node);
        self.ask(number, stream);
    }

    /// Whether a stream of this node is there.
    pub(super) fn has(&self, node: &str) -> bool {
        self.names.values().any(|name| name == node)
    }

    /// Whether no stream is left.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn ask(&mut self, number: u64, mut stream: Stream<T>) {
        self.asked.push(async move { (number, stream.next().await, stream) }.boxed());
    }

    /// What comes next. Never ready while there is no stream. Nothing is lost when it is dropped.
    pub(super) async fn next(&mut self) -> Merged<T> {
        loop {
            if self.asked.is_empty()
                && let Some(message) = self.pop()
            {
                return Merged::Message(message);
            }
            let deadline = self.heads.values().map(|head| head.since + self.hold).min();
            let expired = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let has_asked = !self.asked.is_empty();
            tokio::select! {
                biased;
                Some((number, message, stream)) = self.asked.next(), if has_asked => {
                    if let Some(ended) = self.said(number, message, stream) {
                        return ended;
                    }
                }
                () = expired => {
                    if let Some(message) = self.pop() {
                        return Merged::Message(message);
                    }
                }
            }
        }
    }

    fn said(
        &mut self,
        number: u64,
        message: Option<Result<T, Status>>,
        stream: Stream<T>,
    ) -> Option<Merged<T>> {
        let error = match message {
            Some(Ok(message)) => {
                let head = Head { since: Instant::now(), stream, message };
                self.heads.insert((head.message.time_ns(), number), head);
                return None;
            }
            Some(Err(status)) => Some(status),
            None => None,
        };
        let name = self.names.remove(&number).unwrap_or_default();
        Some(Merged::Ended(name, error))
    }

    /// Takes the earliest head, and asks its stream for the next.
    fn pop(&mut self) -> Option<T> {
        let ((_, number), head) = self.heads.pop_first()?;
        self.ask(number, head.stream);
        Some(head.message)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    impl Timed for u64 {
        fn time_ns(&self) -> u64 {
            *self
        }
    }

    const HOLD: Duration = Duration::from_secs(1);

    fn of(times: &[u64]) -> Stream<u64> {
        stream::iter(times.to_vec()).map(Ok).boxed()
    }

    async fn all(merge: &mut Merge<u64>) -> Vec<u64> {
        let mut messages = Vec::new();
        while !merge.is_empty() {
            if let Merged::Message(message) = merge.next().await {
                messages.push(message);
            }
        }
        messages
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_end_merge_in_order() {
        let mut merge = Merge::new(HOLD);
        merge.add("a".into(), of(&[1, 4, 5, 9]));
        merge.add("b".into(), of(&[2, 3, 10]));
        merge.add("c".into(), of(&[]));
        let began = Instant::now();
        assert_eq!(all(&mut merge).await, [1, 2, 3, 4, 5, 9, 10]);
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody was waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_holds_others_up_for_a_while_only() {
        let mut merge = Merge::new(HOLD);
        merge.add("a".into(), of(&[1]).chain(stream::pending()).boxed());
        merge.add("silent".into(), stream::pending().boxed());
        let began = Instant::now();
        assert!(matches!(merge.next().await, Merged::Message(1)));
        assert_eq!(began.elapsed(), HOLD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_node_is_waited_for() {
        let late = stream::once(async {
            tokio::time::sleep(HOLD / 2).await;
            Ok(1)
        });
        let mut merge = Merge::new(HOLD);
        merge.add("a".into(), of(&[2]).chain(stream::pending()).boxed());
        merge.add("late".into(), late.chain(stream::pending()).boxed());
        assert!(matches!(merge.next().await, Merged::Message(1)));
        assert!(matches!(merge.next().await, Merged::Message(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_node_is_named_and_others_go_on() {
        let failing = stream::iter([Ok(3), Err(Status::unavailable("gone"))]);
        let mut merge = Merge::new(HOLD);
        merge.add("a".into(), of(&[1, 5]));
        merge.add("failing".into(), failing.boxed());
        let mut told = Vec::new();
        while !merge.is_empty() {
            told.push(match merge.next().await {
                Merged::Message(time) => time.to_string(),
                Merged::Ended(name, error) => {
                    format!("{name} {}", error.map_or("end".into(), |e| e.message().to_owned()))
                }
            });
        }
        assert_eq!(told, ["1", "3", "failing gone", "5", "a end"]);
    }
}
