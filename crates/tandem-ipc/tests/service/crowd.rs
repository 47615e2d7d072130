//! Many clients at once: nothing is lost, nothing is mixed up. `cargo xtask soak` does the same for longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tandem_golden::{Prompt, stories};
use tandem_runtime::EngineOptions;
use tandem_testkit::Rng;

use crate::support::{OPTIONS, Peer, Running, greedy, ids_of};

const CLIENTS: usize = 32;

#[test]
fn thirty_two_clients_get_their_own_answers() {
    let options = EngineOptions { max_sequences: 8, ..OPTIONS };
    let server = Running::with(options);
    let stories = Arc::new(stories());
    let end = Instant::now() + Duration::from_secs(8);
    let answers = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let kind = if n % 2 == 0 { zmq::REQ } else { zmq::DEALER };
            let address = server.address.clone();
            let (stories, answers) = (Arc::clone(&stories), Arc::clone(&answers));
            std::thread::spawn(move || {
                let client = Client { peer: Peer::connect(&address, kind), kind, n };
                let mut rng = Rng::new(n as u64);
                let mut count = 0;
                // Each at least a few.
                while Instant::now() < end || count < 3 {
                    client.turn(&mut rng, count, &stories);
                    count += 1;
                }
                answers.fetch_add(count, Ordering::Relaxed);
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert!(answers.load(Ordering::Relaxed) >= 3 * CLIENTS);
    let health = server.req().ask(&json!({"type": "health_check"}));
    assert_eq!(
        (&health["running"], &health["waiting"], &health["requests"]),
        (&json!(0), &json!(0), &json!(0))
    );
}

struct Client {
    peer: Peer,
    kind: zmq::SocketType,
    n: usize,
}

impl Client {
    /// One request, of any kind, and its answer: it must be this one's, and right.
    fn turn(&self, rng: &mut Rng, count: usize, stories: &[Prompt]) {
        let id = Value::from(format!("{}-{count}", self.n));
        match rng.below(4) {
            0 | 1 => {
                let story = &stories[rng.below(stories.len())];
                self.text(rng, &id, story);
            }
            2 => {
                let tokens = 1 + rng.below(8);
                let packet_id = format!("packet {id}");
                let data = json!({
                    "packet_id": packet_id, "operation": "router_logits", "layer_idx": 0, "input_shape": [tokens, 256],
                });
                let answer = self.peer.ask(&json!({"type": "work_packet", "id": id, "data": data}));
                assert_eq!(answer["id"], id);
                assert_eq!(answer["result"]["packet_id"], packet_id);
                assert_eq!(answer["result"]["output_shape"][0], tokens);
            }
            _ => {
                let answer = self.peer.ask(&json!({"type": "get_telemetry", "id": id}));
                assert_eq!((&answer["id"], &answer["type"]), (&id, &json!("get_telemetry")));
            }
        }
    }

    /// The reference's greedy tokens.
    fn text(&self, rng: &mut Rng, id: &Value, story: &Prompt) {
        let most = 1 + rng.below(story.greedy.len());
        let stream = self.kind == zmq::DEALER;
        self.peer.send(&greedy(id.clone(), &story.ids, most, stream));
        let ids = if stream {
            self.peer.stream(id).0
        } else {
            let answer = self.peer.answer();
            assert_eq!(answer["id"], *id, "{answer}");
            ids_of(&answer["result"]["ids"])
        };
        assert_eq!(ids, story.greedy[..most]);
    }
}
