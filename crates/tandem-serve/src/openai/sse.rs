//! Answers as server-sent events.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use crate::answers::{Answers, News};

/// Turns what a request's texts do into what a client reads.
pub(crate) trait Chunks: Send + 'static {
    /// What a client reads.
    type Chunk: Serialize + Send;

    /// Before anything has come.
    fn begin(&mut self) -> Vec<Self::Chunk>;

    /// A text goes on, or ends.
    fn take(&mut self, number: usize, event: tandem_runtime::Event) -> Vec<Self::Chunk>;

    /// After all ends.
    fn end(&mut self) -> Vec<Self::Chunk>;
}

/// The events of an answer: chunks, and `[DONE]`; or an error, and nothing after it.
pub(crate) fn stream<C: Chunks>(answers: Answers, chunks: C) -> Response {
    Sse::new(events(answers.stream(), chunks)).keep_alive(KeepAlive::default()).into_response()
}

fn events<C: Chunks>(
    news: impl Stream<Item = News> + Send,
    mut chunks: C,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    let begin = stream::iter(data(chunks.begin()));
    let mut failed = false;
    let body = news.map(Some).chain(stream::iter([None])).map(move |news| {
        let events = match news {
            Some(News::Of(number, event)) => data(chunks.take(number, event)),
            Some(News::Failed(error)) => {
                failed = true;
                data(vec![error.body()])
            }
            None if failed => Vec::new(),
            None => {
                let mut events = data(chunks.end());
                events.push(Event::default().data("[DONE]"));
                events
            }
        };
        stream::iter(events)
    });
    begin.chain(body.flatten()).map(Ok)
}

/// One event each. What these are made of always has a form in JSON.
fn data<T: Serialize>(chunks: Vec<T>) -> Vec<Event> {
    chunks.iter().filter_map(|chunk| Event::default().json_data(chunk).ok()).collect()
}
