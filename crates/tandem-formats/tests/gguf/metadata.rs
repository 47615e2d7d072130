//! The typed getters.

use tandem_formats::gguf::{Array, Metadata, Value, ValueType};

fn sample() -> Metadata {
    let mut m = Metadata::new();
    m.insert("u8", 200u8);
    m.insert("i64", 5_000_000_000i64);
    m.insert("negative", -5i32);
    m.insert("f32", 1.5f32);
    m.insert("bool", true);
    m.insert("string", "text");
    m.insert("strings", vec!["a".to_owned(), "b".to_owned()]);
    m.insert("i32s", vec![1i32, -2]);
    m.insert("f32s", vec![0.5f32]);
    m
}

#[test]
fn getters_give_values_and_none_for_absent_keys() {
    let m = sample();
    assert_eq!(m.u32("u8").unwrap(), Some(200));
    assert_eq!(m.u64("i64").unwrap(), Some(5_000_000_000));
    assert_eq!(m.f32("f32").unwrap(), Some(1.5));
    assert_eq!(m.bool("bool").unwrap(), Some(true));
    assert_eq!(m.str("string").unwrap(), Some("text"));
    assert_eq!(m.strings("strings").unwrap(), Some(&["a".to_owned(), "b".to_owned()][..]));
    assert_eq!(m.i32s("i32s").unwrap(), Some(&[1, -2][..]));
    assert_eq!(m.f32s("f32s").unwrap(), Some(&[0.5][..]));
    assert_eq!(m.get("f32s").map(Value::value_type), Some(ValueType::Array));

    assert!(m.get("absent").is_none());
    assert!(m.u32("absent").unwrap().is_none() && m.u64("absent").unwrap().is_none());
    assert!(m.f32("absent").unwrap().is_none() && m.bool("absent").unwrap().is_none());
    assert!(m.str("absent").unwrap().is_none() && m.strings("absent").unwrap().is_none());
    assert!(m.i32s("absent").unwrap().is_none() && m.f32s("absent").unwrap().is_none());
}

#[test]
fn getters_name_key_expected_and_found() {
    let m = sample();
    let cases = [
        (
            m.u32("i64").unwrap_err(),
            "`i64`: expected an integer from 0 to 4294967295, found i64 5000000000",
        ),
        (
            m.u64("negative").unwrap_err(),
            "`negative`: expected a non-negative integer, found i32 -5",
        ),
        (
            m.u32("f32").unwrap_err(),
            "`f32`: expected an integer from 0 to 4294967295, found f32 1.5",
        ),
        (m.f32("u8").unwrap_err(), "`u8`: expected f32, found u8 200"),
        (m.bool("u8").unwrap_err(), "`u8`: expected bool, found u8 200"),
        (m.str("bool").unwrap_err(), "`bool`: expected string, found bool true"),
        (
            m.strings("string").unwrap_err(),
            "`string`: expected array of strings, found string `text`",
        ),
        (m.i32s("f32s").unwrap_err(), "`f32s`: expected array of i32, found array of 1 f32"),
        (
            m.f32s("strings").unwrap_err(),
            "`strings`: expected array of f32, found array of 2 string",
        ),
    ];
    for (error, message) in cases {
        assert_eq!(error.to_string(), format!("new GGUF metadata: metadata {message}"));
    }
}

#[test]
fn entries_keep_their_order_and_places() {
    let mut m = Metadata::default();
    assert!(m.is_empty());
    m.insert("z", 1u32);
    m.insert("a", 2u32);
    assert_eq!(m.insert("z", 3u32), Some(Value::U32(1)));
    let keys: Vec<&str> = m.iter().map(|(k, _)| k).collect();
    assert_eq!((keys, m.len()), (vec!["z", "a"], 2));
}

#[test]
fn types_have_the_numbers_of_the_format() {
    for id in 0..13 {
        assert_eq!(ValueType::from_id(id).unwrap() as u32, id);
    }
    assert_eq!(ValueType::from_id(13), None);
    assert_eq!(Array::U16(vec![1]).element_type().name(), "u16");
    assert!(Array::Bool(vec![]).is_empty());
}
