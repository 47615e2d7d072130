//! The tokenizer and the detokenizer against the Python package `tokenizers`.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{ask_python, random_texts};
use tandem_model::detokenize::{Detokenizer, Special};
use tandem_model::tokenizer::{GgmlVocab, Tokenizer, TokenizerConfig};
use tandem_testkit::{Rng, testdata};

const PHI: &str = "phi-tiny-moe/tokenizer.json";
const STORIES: &str = "stories/tokenizer.json";

fn json_of(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(testdata(file)).unwrap()).unwrap()
}

fn load(file: &str) -> Tokenizer {
    let path = testdata(file);
    Tokenizer::from_json_bytes(&path, &std::fs::read(&path).unwrap()).unwrap()
}

fn load_value(json: &Value) -> Result<Tokenizer, String> {
    Tokenizer::from_json_bytes(Path::new("t.json"), json.to_string().as_bytes())
        .map_err(|e| e.to_string())
}

/// Ids and text (with and without special tokens) that the oracle gives for each text.
fn oracle(file: &str, texts: &[String]) -> Vec<(Vec<u32>, String, String)> {
    let script = r#"
import json, sys
from tokenizers import Tokenizer
request = json.load(open(sys.argv[1], encoding="utf-8"))
tokenizer = Tokenizer.from_file(request["tokenizer"])
answers = []
for text in request["texts"]:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    answers.append((ids, tokenizer.decode(ids, False), tokenizer.decode(ids, True)))
print(json.dumps(answers))
"#;
    ask_python(script, &json!({"tokenizer": testdata(file), "texts": texts}))
}

fn assert_same_ids(file: &str, tokenizer: &Tokenizer, seed: u64) {
    let texts = random_texts(seed, 1000);
    for (text, (ids, ..)) in texts.iter().zip(oracle(file, &texts)) {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn chat_string_of_the_reference() {
    let ids = load(PHI).encode("<|user|>\nHi<|end|>\n<|assistant|>\n").unwrap();
    assert_eq!(ids, [32010, 6324, 32007, 32001]);
}

#[test]
fn ids_and_texts_are_those_of_the_tokenizers_package() {
    for file in [PHI, STORIES] {
        let tokenizer = load(file);
        let texts = random_texts(1, 1000);
        for (text, (ids, kept, skipped)) in texts.iter().zip(oracle(file, &texts)) {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{file} {text:?}");
            assert_eq!(tokenizer.decode(&ids, Special::Keep), kept, "{file} {text:?}");
            assert_eq!(tokenizer.decode(&ids, Special::Skip), skipped, "{file} {text:?}");
        }
    }
}

/// Texts of id sequences that no encoder makes: stray bytes, cut characters, ids without a token.
#[test]
fn any_ids_decode_to_the_text_of_their_bytes() {
    // The package's own text is the oracle wherever the bytes are valid. For invalid ones Python's decoder is, since
    // the package replaces valid neighbours too (see the module's text).
    let script = r#"
import json, re, sys
from tokenizers import Tokenizer
request = json.load(open(sys.argv[1], encoding="utf-8"))
tokenizer = Tokenizer.from_file(request["tokenizer"])
def text(ids):
    library = tokenizer.decode(ids, False)
    if "\ufffd" not in library or not request["byte_fallback"]:
        return library
    data = b""
    for token in filter(None, map(tokenizer.id_to_token, ids)):
        byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
        data += bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
    return data.decode(errors="replace").removeprefix(" ")
print(json.dumps([text(ids) for ids in request["sequences"]]))
"#;
    for (file, byte_fallback, rows) in [(PHI, true, 32064), (STORIES, false, 4096)] {
        let tokenizer = load(file);
        let mut rng = Rng::new(7);
        let sequences: Vec<Vec<u32>> = random_texts(2, 1000)
            .iter()
            .map(|text| {
                let mut ids = tokenizer.encode(text).unwrap();
                for _ in 0..rng.below(12) {
                    // Every other one from where the byte tokens are.
                    let highest = [300, rows][rng.below(2)];
                    ids.insert(rng.below(ids.len() + 1), rng.below(highest) as u32);
                }
                ids
            })
            .collect();
        let request = json!({
            "tokenizer": testdata(file), "byte_fallback": byte_fallback, "sequences": sequences,
        });
        let texts: Vec<String> = ask_python(script, &request);
        assert!(texts.iter().any(|text| text.contains('\u{fffd}')));
        for (ids, text) in sequences.iter().zip(texts) {
            assert_eq!(tokenizer.decode(ids, Special::Keep), text, "{file} {ids:?}");
        }
    }
}

#[test]
fn a_stream_holds_back_incomplete_characters_and_no_others() {
    for file in [PHI, STORIES] {
        let tokenizer = load(file);
        // Not in either vocabulary as a whole: four bytes each.
        let text = "\u{1f9ff}\u{1f9ff}";
        let mut stream = Detokenizer::new(&tokenizer, Special::Keep);
        let pushed: Vec<Option<String>> =
            tokenizer.encode(text).unwrap().into_iter().map(|id| stream.push(id)).collect();
        let shown: Vec<&str> = pushed.iter().flatten().map(String::as_str).collect();
        assert_eq!(shown, ["\u{1f9ff}", "\u{1f9ff}"], "{file}: {pushed:?}");
        assert_eq!(stream.finish(), None);
    }
}

#[test]
fn an_incomplete_character_at_the_end_is_replaced_by_finish_only() {
    let tokenizer = load(PHI);
    let mut stream = Detokenizer::new(&tokenizer, Special::Keep);
    assert_eq!(stream.push(tokenizer.id("▁Hi").unwrap()).as_deref(), Some("Hi"));
    assert_eq!(stream.push(tokenizer.id("<0xE2>").unwrap()), None);
    assert_eq!(stream.push(tokenizer.id("<0x82>").unwrap()), None);
    assert_eq!(stream.finish().as_deref(), Some("\u{fffd}"));
}

#[test]
fn special_tokens_are_known_and_ids_without_a_token_too() {
    let phi = load(PHI);
    assert_eq!(phi.vocab_size(), 32011);
    assert_eq!(phi.id("<|end|>"), Some(32007));
    assert_eq!(phi.token(32007).as_deref(), Some("<|end|>"));
    assert!(phi.is_special(32007) && !phi.is_special(6324));
    // `</s>` is an added token but, in this model, no special one.
    assert!(!phi.is_special(2));
    assert!(phi.has_token(32010) && !phi.has_token(32011) && !phi.has_token(u32::MAX));
    assert!(phi.check_fits(32064).is_ok());
    let error = phi.check_fits(32000).unwrap_err().to_string();
    assert!(error.ends_with("highest token id: expected a tokenizer that fits the model's vocabulary of 32000, found 32010"), "{error}");
}

#[test]
fn the_json_form_makes_the_same_tokenizer() {
    for file in [PHI, STORIES] {
        let copy =
            Tokenizer::from_json_bytes(Path::new("copy"), load(file).to_json().unwrap().as_bytes());
        assert_same_ids(file, &copy.unwrap(), 3);
    }
}

/// What the converter of llama.cpp writes for Phi: SentencePiece's scores are minus the rank of a piece, runs of
/// spaces come last, and there is a name for each id up to the model's vocabulary size.
fn phi_vocab_of_the_usual_converter() -> GgmlVocab {
    let json = json_of(PHI);
    let rows = 32064;
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut scores = vec![-10000.0; rows];
    let mut types = vec![5; rows];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        let is_run = token.chars().count() > 1 && token.chars().all(|c| c == '\u{2581}');
        (scores[id], types[id]) = match id {
            0 => (0.0, 2),
            1 | 2 => (0.0, 3),
            3..259 => (0.0, 6),
            _ if is_run => (-1e9, 1),
            _ => (259.0 - id as f32, 1),
        };
        tokens[id].clone_from(token);
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        tokens[id] = added["content"].as_str().unwrap().to_owned();
        types[id] = if added["special"] == true { 3 } else { 4 };
    }
    GgmlVocab {
        model: "llama".into(),
        pre: Some("default".into()),
        tokens,
        scores: Some(scores),
        token_types: Some(types),
        bos: Some(1),
        eos: Some(32000),
        unk: Some(0),
        architecture: Some("phimoe".into()),
        ..GgmlVocab::default()
    }
}

fn stories_vocab_of_the_usual_converter() -> GgmlVocab {
    let json = json_of(STORIES);
    let mut tokens = vec![String::new(); 4096];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    GgmlVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        token_types: Some((0..4096).map(|id| if id < 5 { 3 } else { 1 }).collect()),
        tokens,
        merges: Some(
            merges
                .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
                .collect(),
        ),
        ..GgmlVocab::default()
    }
}

#[test]
fn vocabularies_of_the_usual_converter_give_the_original_ids() {
    for (file, vocab) in [
        (PHI, phi_vocab_of_the_usual_converter()),
        (STORIES, stories_vocab_of_the_usual_converter()),
    ] {
        let tokenizer = Tokenizer::from_ggml(Path::new("m.gguf"), &vocab).unwrap();
        assert_same_ids(file, &tokenizer, 4);
        let original = load(file);
        assert_eq!(tokenizer.vocab_size(), original.vocab_size());
        for text in random_texts(5, 300) {
            let ids = original.encode(&text).unwrap();
            for special in [Special::Keep, Special::Skip] {
                assert_eq!(tokenizer.decode(&ids, special), original.decode(&ids, special));
            }
        }
    }
}

#[test]
fn vocabularies_for_gguf_say_what_the_usual_converter_says() {
    let config = |name: &str| {
        let path = testdata(name);
        TokenizerConfig::from_json_bytes(&path, &std::fs::read(&path).unwrap()).unwrap()
    };
    let phi = load(PHI).to_ggml(32064, &config("phi-tiny-moe/tokenizer_config.json")).unwrap();
    let usual = phi_vocab_of_the_usual_converter();
    assert_eq!(phi.model, usual.model);
    assert_eq!(phi.tokens, usual.tokens);
    let (mut types, usual_types) = (phi.token_types.clone().unwrap(), usual.token_types.unwrap());
    // Both are right: `<unk>` is a control token by the added tokens, and the unknown token by its use.
    assert_eq!((types[0], usual_types[0]), (2, 3));
    types[0] = 3;
    assert_eq!(types, usual_types);
    assert_eq!((phi.bos, phi.eos, phi.unk, phi.pad), (Some(1), Some(32000), Some(0), Some(32000)));
    assert_eq!((phi.add_bos, phi.add_space_prefix), (Some(false), Some(true)));

    let stories = load(STORIES).to_ggml(4096, &config("stories/tokenizer_config.json")).unwrap();
    let usual = stories_vocab_of_the_usual_converter();
    assert_eq!((&stories.model, &stories.pre), (&usual.model, &usual.pre));
    assert_eq!((&stories.tokens, &stories.merges), (&usual.tokens, &usual.merges));
    assert_eq!((&stories.token_types, &stories.scores), (&usual.token_types, &None));
}

#[test]
fn a_vocabulary_written_for_gguf_reads_back_with_and_without_the_original() {
    for (file, rows) in [(PHI, 32064), (STORIES, 4096)] {
        let mut vocab = load(file).to_ggml(rows, &TokenizerConfig::default()).unwrap();
        vocab.architecture = Some("phimoe".into());
        let exact = Tokenizer::from_ggml(Path::new("m.gguf"), &vocab).unwrap();
        assert_same_ids(file, &exact, 6);
        if file == PHI {
            vocab.huggingface_json = None;
            let rebuilt = Tokenizer::from_ggml(Path::new("m.gguf"), &vocab).unwrap();
            assert_same_ids(file, &rebuilt, 6);
        }
    }
}

#[test]
fn a_vocabulary_that_contradicts_itself_is_refused_in_one_line() {
    let refused = |change: &dyn Fn(&mut GgmlVocab)| {
        let mut vocab = GgmlVocab {
            model: "llama".into(),
            tokens: ["<unk>", "a", "b", "ab"].map(str::to_owned).to_vec(),
            scores: Some(vec![0.0, -1.0, -2.0, 0.0]),
            token_types: Some(vec![2, 1, 1, 1]),
            ..GgmlVocab::default()
        };
        assert!(Tokenizer::from_ggml(Path::new("m.gguf"), &vocab).is_ok());
        change(&mut vocab);
        Tokenizer::from_ggml(Path::new("m.gguf"), &vocab).err().expect("refused").to_string()
    };
    for (message, change) in [
        (
            "tokenizer.ggml.scores: expected 4 entries, as tokens, found 1",
            (|v| v.scores = Some(vec![0.0])) as fn(&mut GgmlVocab),
        ),
        (
            "tokenizer.ggml.scores: expected one for each token of a llama vocabulary, found none",
            |v| v.scores = None,
        ),
        ("tokenizer.ggml.token_type: expected 4 entries, as tokens, found 0", |v| {
            v.token_types = Some(vec![])
        }),
        ("tokenizer.ggml.token_type[3]: expected a number from 1 to 6, found 9", |v| {
            v.token_types = Some(vec![2, 1, 1, 9]);
        }),
        (
            "tokenizer.ggml.tokens[3]: expected a token of its own, found \"a\", which token 1 is too",
            |v| {
                v.tokens[3] = "a".into();
            },
        ),
        ("tokenizer.ggml.tokens[3]: expected at most 512 bytes, found 600", |v| {
            v.tokens[3] = "a".repeat(600)
        }),
        ("tokenizer.ggml.model: expected llama or gpt2, found \"bert\"", |v| {
            v.model = "bert".into()
        }),
        ("tokenizer.ggml.merges: expected the merges of a gpt2 vocabulary, found none", |v| {
            v.model = "gpt2".into()
        }),
        (
            "tokenizer.ggml.pre: expected default or gpt-2 (others need the key tokenizer.huggingface.json), found \"qwen2\"",
            |v| {
                v.model = "gpt2".into();
                v.pre = Some("qwen2".into());
            },
        ),
    ] {
        assert_eq!(refused(&change), format!("m.gguf: {message}"));
    }
}

fn small() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 4, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]},
    })
}

#[test]
fn a_damaged_tokenizer_json_is_refused_in_one_line() {
    assert_eq!(load_value(&small()).unwrap().encode("abc<end>a").unwrap(), [2, 3, 4, 0]);
    let refused = |pointer: &str, value: Value| {
        let mut json = small();
        *json.pointer_mut(pointer).unwrap() = value;
        let error = load_value(&json).err().expect("refused");
        assert!(error.starts_with("t.json: ") && !error.contains('\n'), "{error}");
        error["t.json: ".len()..].to_owned()
    };
    assert_eq!(
        refused("/model/merges", json!([["ab", "ab"]])),
        "model.merges: expected merges whose result is a token, found entry 0 longer than any token"
    );
    assert!(refused("/model/merges", json!(["a c"])).contains("out of vocabulary"));
    assert_eq!(refused("/model/type", json!("Unigram")), "model.type: expected BPE, found Unigram");
    assert_eq!(
        refused("/added_tokens/0/id", json!(9)),
        "added token \"<end>\": expected id 4, found 9"
    );
    assert!(
        refused("/decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true}))
            .starts_with("decoder: ")
    );
    assert!(refused("/decoder", Value::Null).starts_with("decoder: "));
    assert!(refused("/model/vocab", json!([["a", 0.0]])).starts_with("model.vocab: "));
    assert!(refused("/model", json!(1)).contains("expected a tokenizer in JSON"));
}

/// Settings of training must not cut or pad a prompt.
#[test]
fn truncation_and_padding_of_the_file_do_not_touch_a_prompt() {
    let mut json = small();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 10}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "a"});
    assert_eq!(load_value(&json).unwrap().encode("abcabc").unwrap(), [2, 3, 2, 3]);
}

#[test]
fn damaged_bytes_never_make_the_library_panic() {
    let mut rng = Rng::new(8);
    let original = small().to_string().into_bytes();
    let mut refused = 0;
    for _ in 0..3000 {
        let mut bytes = original.clone();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(bytes.len());
            match rng.below(3) {
                0 => bytes[at] = b"0123456789\"[]{},:abxnull-"[rng.below(25)],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, original[rng.below(original.len())]),
            }
        }
        let encoded = Tokenizer::from_json_bytes(Path::new("t.json"), &bytes)
            .and_then(|t| t.encode("abc<end> ab\n"));
        if let Err(e) = encoded {
            refused += 1;
            assert!(
                !e.to_string().contains("panicked"),
                "{e}: {}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }
    assert!(refused > 1000);
}

#[test]
fn tokenizer_configs_of_all_shapes() {
    let parse = |json: Value| {
        TokenizerConfig::from_json_bytes(Path::new("c.json"), json.to_string().as_bytes())
            .map_err(|e| e.to_string())
    };
    let path = testdata("phi-tiny-moe/tokenizer_config.json");
    let phi = TokenizerConfig::from_json_bytes(&path, &std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        (phi.bos_token.as_deref(), phi.eos_token.as_deref()),
        (Some("<s>"), Some("<|endoftext|>"))
    );
    assert_eq!(phi.model_max_length, Some(4096));
    assert!(phi.chat_template.unwrap().starts_with("{% for message in messages %}"));

    assert_eq!(parse(json!({})), Ok(TokenizerConfig::default()));
    let several = parse(json!({
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
        "bos_token": {"content": "<s>", "special": true},
        "eos_token": null,
        "model_max_length": 1e30,
    }))
    .unwrap();
    assert_eq!(several.chat_template.as_deref(), Some("D"));
    assert_eq!((several.bos_token.as_deref(), several.eos_token), (Some("<s>"), None));
    assert_eq!(several.model_max_length, None);
    assert_eq!(parse(json!({"model_max_length": 2048.0})).unwrap().model_max_length, Some(2048));
    // 10^30 as an integer, as some converters write it.
    let huge = b"{\"model_max_length\": 1000000000000000019884624838656}";
    assert_eq!(
        TokenizerConfig::from_json_bytes(Path::new("c.json"), huge).unwrap().model_max_length,
        None
    );

    for (json, message) in [
        (json!([]), "c.json: content: expected a JSON object, found a list"),
        (json!({"bos_token": 1}), "c.json: bos_token: expected a string, found a number"),
        (
            json!({"eos_token": {"content": []}}),
            "c.json: eos_token: expected a string, found a list",
        ),
        (
            json!({"model_max_length": -1}),
            "c.json: model_max_length: expected a positive number, found -1",
        ),
    ] {
        assert_eq!(parse(json).unwrap_err(), message);
    }
}
