//! The lives of connections, as their two applications see them: who says what, who ends it how, and what the other must see of it.
//!
//! A connection that ends in order brings every byte and then FIN, and no reset afterwards. One that does not is seen as a reset at the
//! other end. A reset may throw away what was said before it, so what arrives then is the beginning of that; but a FIN
//! arrives only behind the last byte.

use std::io::ErrorKind;
use std::sync::LazyLock;
use std::time::Duration;

use adit::net::socket::unacknowledged;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::time::{sleep, timeout};

use crate::carriers::Vanishing;

/// What nobody takes for so long will be taken by nobody.
const STUFFED: Duration = Duration::from_millis(100);
/// The longest text.
const LONGEST: usize = 1 << 20;

/// How a connection lives and ends. The *first* is who acts first, the client or the server; the *second* is the other.
#[derive(Clone, Copy, Debug)]
pub enum Style {
    /// The first speaks and sends FIN; the second hears that, answers, and closes.
    InTurn,
    /// Both speak and send FIN at once.
    AtOnce,
    /// Question and answer, several times; then one after the other closes.
    Converse,
    /// The first speaks and closes its socket while bytes are queued in it; the second hears all, and closes.
    HangUp,
    /// The first speaks and closes; the second answers before it has heard any of that, to nobody.
    Unheard,
    /// Nobody says anything; one after the other closes.
    Silence,
    /// The second says much before the first begins to read.
    SlowReader,
    /// The first resets at once.
    ResetAtOnce,
    /// The first speaks, and resets.
    Reset,
    /// Both speak, and the first resets in the middle of it.
    ResetWhileBothSpeak,
    /// The first speaks, sends FIN and resets, with nothing in between.
    ResetWithFin,
    /// The first speaks and sends FIN; when the second has heard it, the first resets.
    ResetAfterFin,
    /// The first sends FIN; the second hears it, and resets in the middle of its answer.
    ResetInAnswer,
    /// Both reset.
    BothReset,
    /// The first closes with something unread, which is a reset.
    DropUnread,
    /// The first sends FIN, and then closes with the answer unread.
    DropUnreadAfterFin,
    /// The first does not read; when nobody takes anything any more it resets, or closes, which is the same.
    ReaderGone,
    /// The first does not read; when nobody takes anything any more the second resets.
    WriterGone,
    /// The connection is not opened.
    Vanish(Vanishing),
}

impl Style {
    pub fn any(random: &mut fastrand::Rng, opens: bool) -> Self {
        match random.u16(..if opens { 1_000 } else { 960 }) {
            0..160 => Self::InTurn,
            160..280 => Self::AtOnce,
            280..360 => Self::Converse,
            360..420 => Self::HangUp,
            420..440 => Self::Unheard,
            440..490 => Self::Silence,
            490..500 => Self::SlowReader,
            500..550 => Self::ResetAtOnce,
            550..630 => Self::Reset,
            630..690 => Self::ResetWhileBothSpeak,
            690..750 => Self::ResetWithFin,
            750..810 => Self::ResetAfterFin,
            810..870 => Self::ResetInAnswer,
            870..900 => Self::BothReset,
            900..930 => Self::DropUnread,
            930..956 => Self::DropUnreadAfterFin,
            956..958 => Self::ReaderGone,
            958..960 => Self::WriterGone,
            960..980 => Self::Vanish(Vanishing::Cancelled),
            980..985 => Self::Vanish(Vanishing::Unanswered),
            985..990 => Self::Vanish(Vanishing::Refused),
            990..995 => Self::Vanish(Vanishing::NearGone),
            _ => Self::Vanish(Vanishing::FarGone),
        }
    }
}

/// How a life was, for who compares it with what the proxies say.
pub enum Lived {
    /// In order: the bytes towards the second and towards the first, and whose sockets are still there.
    InOrder { there: usize, back: usize, open: Vec<TcpStream> },
    /// At least one end was reset.
    Broken,
}

/// Something to say, mostly little, which no other text of its length is likely to be.
fn words(random: &mut fastrand::Rng) -> &'static [u8] {
    let longest = match random.u8(..100) {
        0..15 => 1,
        15..88 => 2_000,
        88..98 => 70_000,
        _ => 600_000,
    };
    text(random.usize(..longest), random)
}

fn text(length: usize, random: &mut fastrand::Rng) -> &'static [u8] {
    &library()[random.usize(..LONGEST)..][..length]
}

/// All texts.
pub fn library() -> &'static [u8] {
    static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut all = vec![0; 2 * LONGEST];
        fastrand::Rng::with_seed(7).fill(&mut all);
        all
    });
    &ALL
}

/// A moment, mostly none.
pub async fn pause(random: &mut fastrand::Rng) {
    match random.u8(..20) {
        0 => sleep(Duration::from_micros(random.u64(..4_000))).await,
        1..12 => {
            for _ in 0..random.u8(1..8) {
                tokio::task::yield_now().await;
            }
        }
        _ => {}
    }
}

/// Insists that `app` hears exactly `said`, and then FIN.
async fn hears(app: &mut (impl AsyncReadExt + Unpin), said: &[u8]) {
    let mut heard = Vec::new();
    let end = app.read_to_end(&mut heard).await;
    assert!(
        end.is_ok() && heard == said,
        "{} bytes and FIN were sent; {} arrived, the beginning of that: {}, and then {end:?}",
        said.len(),
        heard.len(),
        said.starts_with(&heard)
    );
}

/// Insists that the next that `app` hears is exactly `said`.
async fn hears_next(app: &mut TcpStream, said: &[u8]) {
    let mut heard = vec![0; said.len()];
    app.read_exact(&mut heard).await.unwrap();
    assert!(heard == said, "another text arrived than was sent");
}

/// Insists that `app`, which writes `words` and reads, sees a reset, and before it only what was said.
pub async fn sees_reset(app: &TcpStream, words: &[u8], said: &[u8]) {
    let (mut words, mut said) = (words, said);
    let mut buffer = [0; 16 << 10];
    let kind = loop {
        let interest =
            if words.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        // Whoever asks first is told, so that both directions are asked here and nobody else.
        let ready = app.ready(interest).await.unwrap();
        if ready.is_readable() {
            match app.try_read(&mut buffer) {
                Ok(0) => panic!("the end of what was broken off looks like one in order"),
                Ok(read) => {
                    assert!(
                        said.starts_with(&buffer[..read]),
                        "what arrived before the reset was never said"
                    );
                    said = &said[read..];
                }
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                Err(cause) => break cause.kind(),
            }
        }
        if ready.is_writable() && !words.is_empty() {
            match app.try_write(words) {
                Ok(written) => words = &words[written..],
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                Err(cause) => break cause.kind(),
            }
        }
    };
    assert_eq!(kind, ErrorKind::ConnectionReset);
}

/// Insists that `app`, which has read FIN, is told of a reset. It reads FIN for ever, so the reset shows as the error of its socket.
async fn is_told(app: &TcpStream, words: &[u8]) {
    let mut words = words;
    let kind = loop {
        let interest = if words.is_empty() { Interest::ERROR } else { Interest::ERROR | Interest::WRITABLE };
        let ready = app.ready(interest).await.unwrap();
        if ready.is_error()
            && let Some(cause) = app.take_error().unwrap()
        {
            break cause.kind();
        }
        if ready.is_writable() && !words.is_empty() {
            match app.try_write(words) {
                Ok(written) => words = &words[written..],
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                Err(cause) => break cause.kind(),
            }
        }
    };
    assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "it is told of {kind:?}");
}

fn reset(app: TcpStream) {
    SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn says(app: &mut (impl AsyncWriteExt + Unpin), words: &[u8]) {
    app.write_all(words).await.unwrap();
    app.shutdown().await.unwrap();
}

/// Writes until nobody takes anything any more.
async fn stuffs(app: &mut TcpStream) {
    let chunk = text(LONGEST, &mut fastrand::Rng::with_seed(0));
    while let Ok(taken) = timeout(STUFFED, app.write_all(chunk)).await {
        taken.unwrap();
    }
}

/// The life of a connection that its proxies lose. `nth` tells in what state it is when they do.
pub async fn bereft(nth: usize, mut first: TcpStream, mut second: TcpStream, ready: &Barrier) {
    first.write_all(b"question").await.unwrap();
    hears_next(&mut second, b"question").await;
    second.write_all(b"answer").await.unwrap();
    hears_next(&mut first, b"answer").await;
    let much = text(LONGEST, &mut fastrand::Rng::with_seed(0));
    match nth % 3 {
        // Silent.
        0 => {
            ready.wait().await;
            tokio::join!(sees_reset(&first, b"", b""), sees_reset(&second, b"", b""));
        }
        // With bytes under way.
        1 => {
            let listen = async {
                ready.wait().await;
                sees_reset(&second, b"", much).await;
            };
            tokio::join!(sees_reset(&first, much, b""), listen);
        }
        // Half-closed.
        _ => {
            first.shutdown().await.unwrap();
            hears(&mut second, b"").await;
            ready.wait().await;
            tokio::join!(sees_reset(&first, b"", b""), is_told(&second, b""));
        }
    }
}

/// The life of one connection, for as long as at least one of its applications is there.
pub async fn live(
    style: Style,
    mut first: TcpStream,
    mut second: TcpStream,
    random: &mut fastrand::Rng,
) -> Lived {
    let (said, answer) = (words(random), words(random));
    let in_order = |open| Lived::InOrder { there: said.len(), back: answer.len(), open };
    pause(random).await;
    match style {
        Style::InTurn => {
            tokio::join!(says(&mut first, said), hears(&mut second, said));
            pause(random).await;
            let speak = async {
                second.write_all(answer).await.unwrap();
                drop(second);
            };
            tokio::join!(speak, hears(&mut first, answer));
            return in_order(vec![first]);
        }
        Style::AtOnce => {
            let (mut first_reads, mut first_writes) = first.split();
            let (mut second_reads, mut second_writes) = second.split();
            tokio::join!(
                says(&mut first_writes, said),
                says(&mut second_writes, answer),
                hears(&mut first_reads, answer),
                hears(&mut second_reads, said)
            );
            return in_order(vec![first, second]);
        }
        Style::Converse => {
            let rounds = random.usize(1..5);
            let little = |words: &'static [u8]| &words[..words.len().min(3_000)];
            let (question, answer) = (little(said), little(answer));
            for _ in 0..rounds {
                first.write_all(question).await.unwrap();
                hears_next(&mut second, question).await;
                second.write_all(answer).await.unwrap();
                hears_next(&mut first, answer).await;
            }
            first.shutdown().await.unwrap();
            hears(&mut second, b"").await;
            pause(random).await;
            second.shutdown().await.unwrap();
            hears(&mut first, b"").await;
            let (there, back) = (rounds * question.len(), rounds * answer.len());
            return Lived::InOrder { there, back, open: vec![first, second] };
        }
        Style::HangUp => {
            let speak = async {
                first.write_all(said).await.unwrap();
                drop(first);
            };
            tokio::join!(speak, hears(&mut second, said));
            pause(random).await;
            drop(second);
            return Lived::InOrder { there: said.len(), back: 0, open: Vec::new() };
        }
        Style::Unheard => {
            // A socket that is closed before all was acknowledged is reset by the answer, and that takes the rest back.
            let said = &said[..said.len().min(60_000)];
            says(&mut first, said).await;
            while unacknowledged(&first) > 0 {
                sleep(Duration::from_millis(1)).await;
            }
            drop(first);
            second.write_all(b"too late").await.unwrap();
            pause(random).await;
            hears(&mut second, said).await;
            is_told(&second, b"").await;
        }
        Style::Silence => {
            first.shutdown().await.unwrap();
            hears(&mut second, b"").await;
            second.shutdown().await.unwrap();
            hears(&mut first, b"").await;
            return Lived::InOrder { there: 0, back: 0, open: vec![first, second] };
        }
        Style::SlowReader => {
            let much = text(random.usize(LONGEST / 4..LONGEST), random);
            let slowly = sleep(Duration::from_millis(random.u64(..50)));
            let read = async {
                slowly.await;
                hears(&mut first, much).await;
            };
            tokio::join!(read, says(&mut second, much));
            first.shutdown().await.unwrap();
            hears(&mut second, b"").await;
            return Lived::InOrder { there: 0, back: much.len(), open: vec![first, second] };
        }
        Style::ResetAtOnce => {
            reset(first);
            sees_reset(&second, answer, b"").await;
        }
        Style::Reset => {
            let speak = async {
                first.write_all(said).await.unwrap();
                pause(random).await;
                reset(first);
            };
            tokio::join!(speak, sees_reset(&second, b"", said));
        }
        Style::ResetWhileBothSpeak => {
            let speak = async {
                let (mut reads, mut writes) = first.split();
                let mut heard = vec![0; answer.len().min(1_000)];
                let (_, written) = tokio::join!(reads.read_exact(&mut heard), writes.write_all(said));
                written.unwrap();
                assert!(answer.starts_with(&heard));
                reset(first);
            };
            tokio::join!(speak, sees_reset(&second, answer, said));
        }
        Style::ResetWithFin => {
            let speak = async {
                says(&mut first, said).await;
                reset(first);
            };
            let listen = async {
                let mut heard = Vec::new();
                match second.read_to_end(&mut heard).await {
                    // The FIN came through: so did all before it. The reset comes next.
                    Ok(_) => {
                        assert!(heard == said, "FIN after {} bytes of {}", heard.len(), said.len());
                        is_told(&second, b"").await;
                    }
                    Err(cause) => {
                        assert_eq!(cause.kind(), ErrorKind::ConnectionReset);
                        assert!(said.starts_with(&heard), "what arrived before the reset was never said");
                    }
                }
            };
            tokio::join!(speak, listen);
        }
        Style::ResetAfterFin => {
            tokio::join!(says(&mut first, said), hears(&mut second, said));
            pause(random).await;
            reset(first);
            is_told(&second, b"").await;
        }
        Style::ResetInAnswer => {
            tokio::join!(says(&mut first, said), hears(&mut second, said));
            let speak = async {
                second.write_all(answer).await.unwrap();
                pause(random).await;
                reset(second);
            };
            tokio::join!(speak, sees_reset(&first, b"", answer));
        }
        Style::BothReset => {
            first.write_all(&said[..said.len().min(1_000)]).await.unwrap();
            reset(first);
            pause(random).await;
            reset(second);
        }
        Style::DropUnread => {
            second.write_all(b"never read").await.unwrap();
            assert_eq!(first.peek(&mut [0]).await.unwrap(), 1);
            drop(first);
            sees_reset(&second, answer, b"").await;
        }
        Style::DropUnreadAfterFin => {
            tokio::join!(says(&mut first, said), hears(&mut second, said));
            second.write_all(b"never read").await.unwrap();
            assert_eq!(first.peek(&mut [0]).await.unwrap(), 1);
            drop(first);
            is_told(&second, answer).await;
        }
        Style::ReaderGone => {
            stuffs(&mut second).await;
            // On a busy machine nothing may have come so far yet, and to close would be an end in order.
            assert_eq!(first.peek(&mut [0]).await.unwrap(), 1);
            if random.bool() {
                reset(first);
            } else {
                drop(first);
            }
            sees_reset(&second, b"", b"").await;
        }
        Style::WriterGone => {
            stuffs(&mut second).await;
            reset(second);
            pause(random).await;
            // All chunks are the same, so that the last of them shows what every one was.
            let mut heard = vec![0; LONGEST];
            let mut length = 0;
            let end = loop {
                match first.read(&mut heard[length % LONGEST..]).await {
                    Ok(0) => panic!("the end of what was broken off looks like one in order"),
                    Ok(read) => length += read,
                    Err(cause) => break cause.kind(),
                }
            };
            assert_eq!(end, ErrorKind::ConnectionReset);
            let chunk = text(LONGEST, &mut fastrand::Rng::with_seed(0));
            let (newer, older) = heard.split_at(length % LONGEST);
            let same = if length < LONGEST {
                chunk.starts_with(newer)
            } else {
                chunk.starts_with(newer) && chunk.ends_with(older)
            };
            assert!(same, "what arrived before the reset was never said");
        }
        Style::Vanish(how) => unreachable!("{how:?}: nothing is said on what is not opened"),
    }
    Lived::Broken
}
