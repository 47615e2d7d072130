//! Texts that one request asked for, as they are written.

use std::time::Instant;

use futures_util::{Stream, stream};
use tandem_runtime::{Event, Generated, Request, RuntimeError};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout_at;

use crate::app::App;
use crate::backend::Ticket;
use crate::error::ApiError;
use crate::metrics::TextMetrics;

/// The texts of one request. When it is dropped, those that have not ended are cancelled.
pub(crate) struct Answers {
    events: UnboundedReceiver<(usize, Event)>,
    texts: Vec<Text>,
    /// Texts that have not ended.
    open: usize,
    deadline: tokio::time::Instant,
    seconds: u64,
}

struct Text {
    metrics: TextMetrics,
    /// None any more once it has ended.
    ticket: Option<Ticket>,
}

/// What a request's texts do next.
pub(crate) enum News {
    /// The text of that number goes on, or ends.
    Of(usize, Event),
    /// All that has not ended never will.
    Failed(ApiError),
}

impl Answers {
    /// Asks for texts, each with its prompt. Where one is refused, all are.
    ///
    /// # Errors
    /// As the backend's.
    pub(crate) fn ask(
        app: &App,
        texts: Vec<(Vec<u32>, Request)>,
        begun: Instant,
    ) -> Result<Self, ApiError> {
        let (sender, events) = unbounded_channel();
        let mut asked = Vec::with_capacity(texts.len());
        for (number, (prompt, request)) in texts.into_iter().enumerate() {
            let sender = sender.clone();
            let listener = move |event| {
                // Nobody listens any more: then the text has been cancelled too.
                let _ = sender.send((number, event));
            };
            let mut metrics = TextMetrics::new(&app.metrics, begun);
            match app.backend.submit(prompt, request, Box::new(listener)) {
                Ok(ticket) => asked.push(Text { metrics, ticket: Some(ticket) }),
                Err(error) => {
                    let full = matches!(error, RuntimeError::QueueFull { .. });
                    metrics.end(if full { "refused" } else { "failed" });
                    return Err(error.into());
                }
            }
        }
        let limit = app.options.limits.generation_timeout;
        let open = asked.len();
        let deadline = tokio::time::Instant::now() + limit;
        Ok(Self { events, texts: asked, open, deadline, seconds: limit.as_secs() })
    }

    /// What comes next; none after every text's end.
    pub(crate) async fn next(&mut self) -> Option<News> {
        if self.open == 0 {
            return None;
        }
        let (number, event) = match timeout_at(self.deadline, self.events.recv()).await {
            Ok(Some(news)) => news,
            Ok(None) => return Some(self.fail("failed", (&RuntimeError::EngineStopped).into())),
            Err(_) => return Some(self.fail("timeout", ApiError::timed_out(self.seconds))),
        };
        let text = self.texts.get_mut(number)?;
        match &event {
            Event::Tokens { ids, .. } => text.metrics.tokens(ids.len()),
            Event::Finished(generated) => {
                text.metrics.finished(generated);
                text.ticket = None;
                self.open -= 1;
            }
            Event::Failed(error) => {
                let error = ApiError::from(&**error);
                return Some(self.fail("failed", error));
            }
        }
        Some(News::Of(number, event))
    }

    fn fail(&mut self, outcome: &'static str, error: ApiError) -> News {
        for text in &mut self.texts {
            if text.ticket.take().is_some() {
                text.metrics.end(outcome);
            }
        }
        self.open = 0;
        News::Failed(error)
    }

    /// Waits for all ends, in the order in which the texts were asked for.
    ///
    /// # Errors
    /// Where one fails or all take too long.
    pub(crate) async fn whole(mut self) -> Result<Vec<Generated>, ApiError> {
        let mut ends: Vec<Option<Generated>> = self.texts.iter().map(|_| None).collect();
        while let Some(news) = self.next().await {
            match news {
                News::Of(number, Event::Finished(generated)) => ends[number] = Some(generated),
                News::Of(..) => {}
                News::Failed(error) => return Err(error),
            }
        }
        Ok(ends.into_iter().flatten().collect())
    }

    /// The news as a stream.
    pub(crate) fn stream(self) -> impl Stream<Item = News> {
        stream::unfold(self, |mut answers| async {
            let news = answers.next().await?;
            Some((news, answers))
        })
    }
}
