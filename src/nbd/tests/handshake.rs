//! The handshake, rule by rule.

use bytes::{Buf, BytesMut};

use crate::nbd::{
    Export, Exports, Handshake, OPTION_DATA_MAX, Replies, Session, Step, Unavailable,
};

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;
const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

/// `HAS_FLAGS`, FLUSH, FUA, TRIM, `WRITE_ZEROES`, `MULTI_CONN`, CACHE, `FAST_ZERO`.
const FLAGS: u16 = 0b1101_0110_1101;
const SEND_DF: u16 = 1 << 7;
const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

struct Shop(Vec<&'static str>);

impl Exports for Shop {
    fn list(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    fn find(&self, name: &str) -> Result<Export, Unavailable> {
        match name {
            "elsewhere" => Err(Unavailable::Policy("chelles is primary".into())),
            _ if self.0.contains(&name) => Ok(Export {
                name: name.into(),
                size: 12345,
                description: format!("the {name}"),
            }),
            _ => Err(Unavailable::Unknown),
        }
    }
}

/// A client that has read the greeting and sent its flags.
struct Client {
    server: Handshake,
    shop: Shop,
    input: BytesMut,
    output: BytesMut,
}

impl Client {
    fn with_flags(flags: u32) -> Client {
        let mut output = BytesMut::new();
        let server = Handshake::new(&mut output);
        assert_eq!(output.split(), b"NBDMAGICIHAVEOPT\x00\x03"[..]);
        let mut client = Client {
            server,
            shop: Shop(vec!["disk"]),
            input: BytesMut::new(),
            output,
        };
        assert_eq!(client.send(&flags.to_be_bytes()), Step::More);
        client
    }

    fn new() -> Client {
        Client::with_flags(3)
    }

    fn send(&mut self, bytes: &[u8]) -> Step {
        self.input.extend_from_slice(bytes);
        self.server
            .advance(&mut self.input, &mut self.output, &self.shop)
    }

    /// Sends an option; returns the step and the answers to it as (kind, data).
    fn option(&mut self, option: u32, data: &[u8]) -> (Step, Vec<(u32, Vec<u8>)>) {
        let step = self.send(&raw_option(option, data));
        (step, self.answers(option))
    }

    fn answers(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let mut output = self.output.split();
        let mut answers = Vec::new();
        while !output.is_empty() {
            assert_eq!(output.get_u64(), 0x0003_e889_0455_65a9);
            assert_eq!(output.get_u32(), option);
            let kind = output.get_u32();
            let len = output.get_u32() as usize;
            answers.push((kind, output.split_to(len).to_vec()));
        }
        answers
    }

    /// Sends an option that is answered by one answer and is followed by more options.
    fn one(&mut self, option: u32, data: &[u8]) -> (u32, Vec<u8>) {
        let (step, mut answers) = self.option(option, data);
        assert_eq!(step, Step::More);
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// Sends an option that is refused, and checks that there is a text.
    fn refused(&mut self, option: u32, data: &[u8]) -> u32 {
        let (kind, text) = self.one(option, data);
        assert!(kind > 0x8000_0000, "{kind} is not an error");
        let text = String::from_utf8(text).expect("a text is UTF-8");
        assert!(!text.is_empty() && text.len() <= 4096 && !text.contains('\0'));
        kind
    }

    fn go(&mut self, name: &str) -> Session {
        match self.option(GO, &info(name, &[])) {
            (Step::Done(session), _) => session,
            other => panic!("GO did not succeed: {other:?}"),
        }
    }
}

fn raw_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

fn prefixed(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn info(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut bytes = prefixed(name);
    bytes.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    bytes.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    bytes
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = prefixed(name);
    bytes.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    bytes.extend(queries.iter().flat_map(|query| prefixed(query)));
    bytes
}

fn export_fact(flags: u16) -> (u32, Vec<u8>) {
    let mut data = vec![0, 0];
    data.extend(12345_u64.to_be_bytes());
    data.extend(flags.to_be_bytes());
    (REP_INFO, data)
}

fn context(id: u32) -> (u32, Vec<u8>) {
    let mut data = id.to_be_bytes().to_vec();
    data.extend(b"base:allocation");
    (META_CONTEXT, data)
}

fn ack() -> (u32, Vec<u8>) {
    (ACK, vec![])
}

#[test]
fn an_unknown_client_flag_closes_the_connection() {
    for flags in [4_u32, 0x8000_0003] {
        let mut output = BytesMut::new();
        let mut server = Handshake::new(&mut output);
        let mut input = BytesMut::from(&flags.to_be_bytes()[..]);
        let step = server.advance(&mut input, &mut output, &Shop(vec![]));
        assert!(matches!(step, Step::Close(_)), "{step:?}");
    }
}

#[test]
fn an_option_without_its_magic_closes_the_connection_for_good() {
    let mut client = Client::new();
    let step = client.send(b"IHAVENOT\x00\x00\x00\x03\x00\x00\x00\x00");
    assert!(matches!(step, Step::Close(_)), "{step:?}");
    assert!(client.output.is_empty());
    let step = client.send(&raw_option(LIST, b""));
    assert!(matches!(step, Step::Close(_)), "{step:?}");
    assert!(client.output.is_empty());
}

#[test]
fn export_name_is_answered_by_134_bytes_or_by_10_without_zeroes() {
    for (client_flags, len) in [(0_u32, 134), (1, 134), (2, 10), (3, 10)] {
        let mut client = Client::with_flags(client_flags);
        let step = client.send(&raw_option(EXPORT_NAME, b"disk"));
        let expected = Session {
            export: "disk".into(),
            size: 12345,
            replies: Replies::Simple,
            allocation: false,
        };
        assert_eq!(step, Step::Done(expected));
        assert_eq!(client.output.len(), len);
        assert_eq!(client.output.get_u64(), 12345);
        assert_eq!(client.output.get_u16(), FLAGS);
        assert!(client.output.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn export_name_that_fails_can_only_close() {
    let names: [&[u8]; 5] = [b"none", b"elsewhere", b"di\0sk", b"\xff", &[b'x'; 4097]];
    for name in names {
        let mut client = Client::new();
        let step = client.send(&raw_option(EXPORT_NAME, name));
        assert!(matches!(step, Step::Close(_)), "{name:?}: {step:?}");
        assert!(client.output.is_empty());
    }
}

#[test]
fn export_name_after_extended_headers_closes() {
    let mut client = Client::new();
    assert_eq!(client.one(EXTENDED_HEADERS, b""), ack());
    let step = client.send(&raw_option(EXPORT_NAME, b"disk"));
    assert!(matches!(step, Step::Close(_)), "{step:?}");
    assert!(client.output.is_empty());
}

#[test]
fn go_never_pads() {
    let mut client = Client::with_flags(0);
    let (step, answers) = client.option(GO, &info("disk", &[]));
    assert!(matches!(step, Step::Done(_)));
    assert_eq!(answers, [export_fact(FLAGS), ack()]);
}

#[test]
fn bytes_after_go_are_left_for_the_transmission_phase() {
    let mut client = Client::new();
    let mut bytes = raw_option(GO, &info("disk", &[]));
    bytes.extend(b"first request");
    assert!(matches!(client.send(&bytes), Step::Done(_)));
    assert_eq!(client.input, b"first request"[..]);
}

#[test]
fn an_unknown_option_is_unsupported_and_the_next_one_is_understood() {
    let mut client = Client::new();
    assert_eq!(client.refused(4, b""), ERR_UNSUP);
    assert_eq!(client.refused(0xdead_beef, &[7; 5000]), ERR_UNSUP);
    assert_eq!(client.option(LIST, b"").1.len(), 2);
}

#[test]
fn data_beyond_what_is_read_is_skipped_as_it_comes_and_refused() {
    for (option, kind) in [(GO, ERR_TOO_BIG), (77, ERR_UNSUP), (LIST, ERR_INVALID)] {
        let mut client = Client::new();
        let len = OPTION_DATA_MAX + 1;
        let mut header = raw_option(option, b"");
        header[12..].copy_from_slice(&len.to_be_bytes());
        assert_eq!(client.send(&header), Step::More);
        for _ in 0..OPTION_DATA_MAX / 1024 {
            assert_eq!(client.send(&[0; 1024]), Step::More);
            assert!(client.input.is_empty(), "nothing is kept");
            assert!(client.output.is_empty());
        }
        assert_eq!(client.send(&[0]), Step::More);
        assert_eq!(client.answers(option)[0].0, kind);
        assert_eq!(client.go("disk").export, "disk");
    }
}

#[test]
fn a_length_that_nobody_would_wait_for_closes_at_once() {
    for option in [ABORT, GO, 77] {
        let mut client = Client::new();
        let mut header = raw_option(option, b"");
        header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        let step = client.send(&header);
        assert!(matches!(step, Step::Close(_)), "{step:?}");
    }
}

#[test]
fn abort_is_acknowledged_even_with_data() {
    for data in [&b""[..], b"goodbye"] {
        let mut client = Client::new();
        let (step, answers) = client.option(ABORT, data);
        assert!(matches!(step, Step::Close(_)), "{step:?}");
        assert_eq!(answers, [ack()]);
    }
}

#[test]
fn list_names_every_export() {
    let mut client = Client::new();
    client.shop = Shop(vec!["disk", "été"]);
    let (step, answers) = client.option(LIST, b"");
    assert_eq!(step, Step::More);
    let expected = [(SERVER, prefixed("disk")), (SERVER, prefixed("été")), ack()];
    assert_eq!(answers, expected);
}

#[test]
fn options_without_data_refuse_data() {
    for option in [LIST, STARTTLS, STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let mut client = Client::new();
        assert_eq!(client.refused(option, b"x"), ERR_INVALID);
        let session = client.go("disk");
        assert_eq!(session.replies, Replies::Simple, "it had no effect");
    }
}

#[test]
fn starttls_is_unsupported_and_never_required() {
    let mut client = Client::new();
    assert_eq!(client.refused(STARTTLS, b""), ERR_UNSUP);
    assert_eq!(client.go("disk").export, "disk");
}

#[test]
fn info_and_go_always_tell_the_export_and_else_what_was_asked() {
    let mut name = vec![0, 1];
    name.extend(b"disk");
    let mut description = vec![0, 2];
    description.extend(b"the disk");
    let block_size = vec![0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0];

    for option in [INFO, GO] {
        let mut client = Client::new();
        let (_, answers) = client.option(option, &info("disk", &[3, 999, 2, 1, 3]));
        let expected = [
            (REP_INFO, name.clone()),
            (REP_INFO, description.clone()),
            (REP_INFO, block_size.clone()),
            export_fact(FLAGS),
            ack(),
        ];
        assert_eq!(answers, expected);
    }
}

#[test]
fn inconsistent_lengths_inside_an_option_are_invalid() {
    let mut name_too_long = info("disk", &[]);
    name_too_long[3] = 200;
    let mut name_of_4_gib = info("disk", &[]);
    name_of_4_gib[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut too_many_facts = info("disk", &[3]);
    too_many_facts[9] = 2;
    let mut data_left = info("disk", &[3]);
    data_left.push(0);
    for data in [
        vec![],
        vec![0; 5],
        name_too_long,
        name_of_4_gib,
        too_many_facts,
        data_left,
    ] {
        let mut client = Client::new();
        assert_eq!(client.refused(INFO, &data), ERR_INVALID, "{data:?}");
        assert_eq!(client.refused(GO, &data), ERR_INVALID, "{data:?}");
        assert_eq!(client.go("disk").export, "disk");
    }
}

#[test]
fn an_unknown_export_is_refused_without_dropping() {
    let mut client = Client::new();
    assert_eq!(client.refused(INFO, &info("none", &[])), ERR_UNKNOWN);
    assert_eq!(client.refused(GO, &info("none", &[3])), ERR_UNKNOWN);
    assert_eq!(client.go("disk").export, "disk");
}

#[test]
fn an_export_that_is_elsewhere_is_refused_by_policy_and_says_where() {
    let mut client = Client::new();
    for option in [INFO, GO] {
        let (kind, text) = client.one(option, &info("elsewhere", &[]));
        assert_eq!(kind, ERR_POLICY);
        assert_eq!(text, b"chelles is primary");
    }
}

#[test]
fn the_empty_name_is_the_only_export_if_there_is_one() {
    let mut client = Client::new();
    let (_, answers) = client.option(INFO, &info("", &[1]));
    assert_eq!(answers[0], (REP_INFO, b"\x00\x01disk".to_vec()));
    assert_eq!(client.go("").export, "disk");

    for names in [vec![], vec!["disk", "other"]] {
        let mut client = Client::new();
        client.shop = Shop(names);
        assert_eq!(client.refused(GO, &info("", &[])), ERR_UNKNOWN);
    }
}

#[test]
fn names_have_at_most_4096_bytes_and_no_nul() {
    let mut client = Client::new();
    assert_eq!(
        client.refused(GO, &info(&"x".repeat(4096), &[])),
        ERR_UNKNOWN
    );
    assert_eq!(
        client.refused(GO, &info(&"x".repeat(4097), &[])),
        ERR_INVALID
    );
    assert_eq!(client.refused(GO, &info("di\0sk", &[])), ERR_INVALID);
    let mut not_utf8 = info("disk", &[]);
    not_utf8[4] = 0xff;
    assert_eq!(client.refused(GO, &not_utf8), ERR_INVALID);
}

#[test]
fn a_go_after_info_tells_the_same() {
    for (setup, flags) in [
        (vec![], FLAGS),
        (vec![(STRUCTURED_REPLY, vec![])], FLAGS | SEND_DF),
        (vec![(EXTENDED_HEADERS, vec![])], FLAGS | SEND_DF),
        (
            vec![
                (EXTENDED_HEADERS, vec![]),
                (SET_META_CONTEXT, meta("disk", &["base:allocation"])),
            ],
            FLAGS | SEND_DF | BLOCK_STATUS_PAYLOAD,
        ),
    ] {
        let mut client = Client::new();
        for (option, data) in setup {
            let (_, answers) = client.option(option, &data);
            assert_eq!(answers.last(), Some(&ack()));
        }
        let (step, answers) = client.option(INFO, &info("disk", &[]));
        assert_eq!(step, Step::More);
        assert_eq!(answers, [export_fact(flags), ack()]);
        let (step, answers) = client.option(GO, &info("disk", &[]));
        assert!(matches!(step, Step::Done(_)));
        assert_eq!(answers, [export_fact(flags), ack()]);
    }
}

#[test]
fn block_status_payload_is_offered_only_with_extended_headers() {
    let mut client = Client::new();
    client.one(STRUCTURED_REPLY, b"");
    client.option(SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
    let (_, answers) = client.option(INFO, &info("disk", &[]));
    assert_eq!(answers, [export_fact(FLAGS | SEND_DF), ack()]);
}

#[test]
fn extended_headers_take_precedence_over_structured_replies() {
    let mut client = Client::new();
    assert_eq!(client.one(STRUCTURED_REPLY, b""), ack());
    assert_eq!(client.one(EXTENDED_HEADERS, b""), ack());
    assert_eq!(client.refused(STRUCTURED_REPLY, b""), ERR_EXT_HEADER_REQD);
    assert_eq!(client.go("disk").replies, Replies::Extended);
}

#[test]
fn metadata_contexts_need_structured_or_extended_replies() {
    let mut client = Client::new();
    for option in [SET_META_CONTEXT, LIST_META_CONTEXT] {
        let data = meta("disk", &["base:allocation"]);
        assert_eq!(client.refused(option, &data), ERR_INVALID);
    }
    for negotiated in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let mut client = Client::new();
        client.one(negotiated, b"");
        let (_, answers) = client.option(SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
        assert_eq!(answers, [context(1), ack()]);
        assert!(client.go("disk").allocation);
    }
}

/// A client with structured replies and `base:allocation` selected.
fn selected() -> Client {
    let mut client = Client::new();
    client.shop = Shop(vec!["disk", "other"]);
    client.one(STRUCTURED_REPLY, b"");
    let data = meta("disk", &["base:allocation", "base:allocation"]);
    let (_, answers) = client.option(SET_META_CONTEXT, &data);
    assert_eq!(
        answers,
        [context(1), ack()],
        "once, however often it is asked"
    );
    client
}

#[test]
fn a_new_selection_replaces_the_old_one_even_when_it_fails() {
    assert!(selected().go("disk").allocation);

    let mut truncated = meta("disk", &["base:allocation"]);
    truncated.pop();
    for data in [
        truncated,
        meta("none", &["base:allocation"]),
        meta("elsewhere", &["base:allocation"]),
        meta("disk", &["base:alloc\0ation"]),
        vec![0; OPTION_DATA_MAX as usize + 1],
    ] {
        let mut client = selected();
        client.refused(SET_META_CONTEXT, &data);
        assert!(!client.go("disk").allocation);
    }

    let mut client = selected();
    assert_eq!(client.one(SET_META_CONTEXT, &meta("disk", &[])), ack());
    assert!(!client.go("disk").allocation);
}

#[test]
fn a_list_of_contexts_leaves_the_selection_alone() {
    let mut client = selected();
    client.option(LIST_META_CONTEXT, &meta("disk", &["x-none:"]));
    client.refused(LIST_META_CONTEXT, b"");
    assert!(client.go("disk").allocation);
}

#[test]
fn a_selection_is_bound_to_its_export() {
    assert!(!selected().go("other").allocation);
}

#[test]
fn a_selection_for_the_default_export_holds_under_either_name() {
    for (set, go) in [("", "disk"), ("disk", ""), ("", "")] {
        let mut client = Client::new();
        client.one(STRUCTURED_REPLY, b"");
        client.option(SET_META_CONTEXT, &meta(set, &["base:allocation"]));
        assert!(client.go(go).allocation);
    }
}

#[test]
fn unknown_namespaces_and_names_select_nothing_and_fail_nothing() {
    let mut client = selected();
    for query in [
        "qemu:dirty-bitmap:b0",
        "base:",
        "base:other",
        "allocation",
        "",
    ] {
        let data = meta("disk", &[query]);
        assert_eq!(client.one(SET_META_CONTEXT, &data), ack(), "{query}");
    }
    let data = meta("disk", &["x-none:a", "base:allocation"]);
    assert_eq!(
        client.option(SET_META_CONTEXT, &data).1,
        [context(1), ack()]
    );
}

#[test]
fn contexts_are_listed_by_name_by_wildcard_or_all() {
    let mut client = selected();
    for queries in [
        &[][..],
        &["base:"],
        &["base:allocation"],
        &["x-a:", "base:"],
    ] {
        let (_, answers) = client.option(LIST_META_CONTEXT, &meta("disk", queries));
        assert_eq!(answers, [context(0), ack()], "{queries:?}");
    }
    for queries in [&["base:other"][..], &["x-a:"]] {
        let (_, answers) = client.option(LIST_META_CONTEXT, &meta("disk", queries));
        assert_eq!(answers, [ack()], "{queries:?}");
    }
    assert_eq!(
        client.refused(LIST_META_CONTEXT, &meta("none", &[])),
        ERR_UNKNOWN
    );
}

#[test]
fn a_claimed_number_of_queries_is_not_believed() {
    let mut client = selected();
    let mut data = meta("disk", &[]);
    let count = data.len() - 4;
    data[count..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(client.refused(SET_META_CONTEXT, &data), ERR_INVALID);
}

#[test]
fn a_client_that_asks_without_listening_does_not_make_the_answers_grow() {
    let mut client = Client::new();
    let lists: Vec<u8> = (0..100_000).flat_map(|_| raw_option(LIST, b"")).collect();
    let mut step = client.send(&lists);
    let mut answers = 0;
    while step == Step::Again {
        assert!(client.output.len() < 70_000, "{}", client.output.len());
        answers += client.answers(LIST).len();
        step = client.send(b"");
    }
    assert_eq!(step, Step::More);
    assert_eq!(answers + client.answers(LIST).len(), 200_000);
}

#[test]
fn a_handshake_that_comes_byte_by_byte_ends_the_same() {
    let mut stream = 3_u32.to_be_bytes().to_vec();
    stream.extend(raw_option(77, b"what?"));
    stream.extend(raw_option(STRUCTURED_REPLY, b""));
    stream.extend(raw_option(
        SET_META_CONTEXT,
        &meta("disk", &["base:allocation"]),
    ));
    stream.extend(raw_option(GO, &info("disk", &[3])));

    let run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        let mut server = Handshake::new(&mut output);
        let mut steps = Vec::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            steps.push(server.advance(&mut input, &mut output, &Shop(vec!["disk"])));
        }
        (steps.pop(), output)
    };
    let whole = run(&mut std::iter::once(&stream[..]));
    assert!(matches!(whole.0, Some(Step::Done(_))));
    assert_eq!(run(&mut stream.chunks(1)), whole);
}
