//! A thousand connections that are broken off, and a thousand that half-close: each is seen by the far application as what it was.
//!
//! All go through both proxies, half of them dialled by each node. In all but the idle ones bytes are under way when they break.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use adit::lab::{self, Pod};

use crate::stage::{SOON, Stage, accept, fresh_port, until};

/// Of each.
const THOUSAND: usize = 1_000;
/// So many at a time.
const AT_ONCE: usize = 24;
/// The longest text.
const LONGEST: usize = 4 << 20;

/// How one application breaks off; the other must see a reset.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// It resets while nobody says anything.
    Silent,
    /// It resets in the middle of what it sends.
    Sending,
    /// It resets in the middle of what the other sends.
    Receiving,
    /// Its process is killed in the middle of what the other sends, with bytes unread.
    KilledReceiving,
    /// Its process is killed in the middle of what it sends, with bytes unread.
    KilledSending,
    /// The other has sent FIN, and it resets in the middle of its answer.
    Answering,
}

impl Break {
    fn nth(nth: usize) -> Self {
        match nth % 10 {
            0 => Self::Silent,
            1 | 2 => Self::Sending,
            3 | 4 => Self::Receiving,
            5 => Self::KilledReceiving,
            6 | 7 => Self::KilledSending,
            _ => Self::Answering,
        }
    }
}

/// Where applications dial each other, in both directions.
struct Doors<'a> {
    doors: [(&'a Pod, &'a Pod, u16, Mutex<TcpListener>); 2],
}

impl<'a> Doors<'a> {
    fn new(stage: &'a Stage) -> Self {
        let door = |from, to: &'a Pod| {
            let port = fresh_port();
            (from, to, port, Mutex::new(lab::listen_for(to.netns(), port).unwrap()))
        };
        Self { doors: [door(&stage.client, &stage.server), door(&stage.server, &stage.client)] }
    }

    /// Both ends of a new connection, that of the dialling application first.
    fn connect(&self, nth: usize) -> io::Result<(TcpStream, TcpStream)> {
        let (from, to, port, listener) = &self.doors[nth % 2];
        // One at a time, so that what is accepted is what was dialled.
        let listener = listener.lock().unwrap();
        let dialled = lab::dial(from.netns(), to.at(*port), SOON)?;
        let (accepted, _) = accept(&listener)?;
        Ok((dialled, accepted))
    }

    /// Insists that nobody was dialled who had not dialled.
    fn are_empty(&self) {
        for (.., listener) in &self.doors {
            let listener = listener.lock().unwrap();
            listener.set_nonblocking(true).unwrap();
            let more = listener.accept().map(|(_, from)| from);
            assert!(
                matches!(&more, Err(cause) if cause.kind() == ErrorKind::WouldBlock),
                "an application was dialled more often than another dialled: {more:?}"
            );
        }
    }
}

/// Does `story` for a thousand connections, some at a time, and insists that every one is as it has to be.
fn a_thousand(what: &str, story: impl Fn(usize, TcpStream, TcpStream) -> Result<(), String> + Sync) {
    let stage = Stage::new();
    let doors = Doors::new(&stage);
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let since = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= THOUSAND {
                        return;
                    }
                    let told = doors.connect(nth).map_err(|cause| format!("connecting: {cause}"));
                    // A quarter each: dialled by either node, and ended by either application.
                    let told = told.and_then(|(dialled, accepted)| match nth / 2 % 2 {
                        0 => story(nth / 4, dialled, accepted),
                        _ => story(nth / 4, accepted, dialled),
                    });
                    if let Err(why) = told {
                        wrong.lock().unwrap().push(format!("connection {nth}: {why}"));
                    }
                }
            });
        }
    });
    doors.are_empty();
    let wrong = wrong.into_inner().unwrap();
    println!("{} of {THOUSAND} {what}, in {:?}", THOUSAND - wrong.len(), since.elapsed());
    assert!(wrong.is_empty(), "{} of {THOUSAND} were not: {wrong:#?}", wrong.len());
}

#[test]
fn a_thousand_abnormal_ends_are_seen_as_resets() {
    a_thousand("abnormal ends are seen as resets", |nth, breaks, stays| {
        let how = Break::nth(nth);
        broken_off(how, breaks, stays, &mut fastrand::Rng::with_seed(nth as u64))
            .map_err(|why| format!("{how:?}: {why}"))
    });
}

fn broken_off(
    how: Break,
    breaks: TcpStream,
    stays: TcpStream,
    random: &mut fastrand::Rng,
) -> Result<(), String> {
    let told = |cause: io::Error| cause.to_string();
    let after = random.usize(1..LONGEST / 2);
    let said = text(random, after);
    match how {
        Break::Silent => {
            (&stays).write_all(b"question").map_err(told)?;
            (&breaks).read_exact(&mut [0; 8]).map_err(told)?;
            reset(breaks);
            sees_reset(&stays, b"")
        }
        Break::Sending => std::thread::scope(|scope| {
            let sees = scope.spawn(|| sees_reset(&stays, said));
            (&breaks).write_all(said).map_err(told)?;
            reset(breaks);
            sees.join().unwrap()
        }),
        Break::Receiving => std::thread::scope(|scope| {
            let is_told = scope.spawn(|| pours_until(ErrorKind::ConnectionReset, &stays));
            (&breaks).read_exact(&mut vec![0; after]).map_err(told)?;
            reset(breaks);
            is_told.join().unwrap()
        }),
        Break::KilledReceiving => std::thread::scope(|scope| {
            let is_told = scope.spawn(|| pours_until(ErrorKind::ConnectionReset, &stays));
            (&breaks).read_exact(&mut vec![0; after]).map_err(told)?;
            // There is more, which the process that has the socket from here on never reads.
            breaks.peek(&mut [0]).map_err(told)?;
            let mut process =
                Command::new("sleep").arg("600").stdin(OwnedFd::from(breaks)).spawn().map_err(told)?;
            process.kill().and_then(|()| process.wait()).map_err(told)?;
            is_told.join().unwrap()
        }),
        Break::KilledSending => {
            (&stays).write_all(b"never read").map_err(told)?;
            breaks.peek(&mut [0]).map_err(told)?;
            let input = breaks.try_clone().map_err(told)?;
            let mut cat = Command::new("cat");
            cat.arg("/dev/zero").stdin(OwnedFd::from(input)).stdout(OwnedFd::from(breaks));
            let mut process = cat.spawn().map_err(told)?;
            // The command holds the socket too.
            drop(cat);
            (&stays).read_exact(&mut vec![0; after]).map_err(told)?;
            process.kill().and_then(|()| process.wait()).map_err(told)?;
            reads_until_reset(&stays, |_| true)
        }
        Break::Answering => {
            let question = text(random, random.clone().usize(..200_000));
            std::thread::scope(|scope| {
                let answers = scope.spawn(|| -> Result<(), String> {
                    hears(&breaks, question)?;
                    (&breaks).write_all(said).map_err(told)?;
                    reset(breaks);
                    Ok(())
                });
                (&stays).write_all(question).map_err(told)?;
                stays.shutdown(Shutdown::Write).map_err(told)?;
                sees_reset(&stays, said)?;
                answers.join().unwrap()
            })
        }
    }
}

#[test]
fn a_thousand_half_closes_lose_nothing() {
    a_thousand("half-closes lose nothing", |nth, first, second| {
        half_closed(first, second, &mut fastrand::Rng::with_seed(nth as u64))
    });
}

/// `first` says something and sends FIN; `second` hears it all, answers and ends; `first` hears that.
fn half_closed(first: TcpStream, second: TcpStream, random: &mut fastrand::Rng) -> Result<(), String> {
    let told = |cause: io::Error| cause.to_string();
    let mut words = || {
        let longest = [1, 2_000, 70_000, 300_000, LONGEST][random.usize(..5)];
        let length = random.usize(..longest);
        text(random, length)
    };
    let (said, answer) = (words(), words());
    let closes = random.bool();
    // A clone would keep from closing.
    let kept = (!closes).then(|| second.try_clone()).transpose().map_err(told)?;
    std::thread::scope(|scope| {
        let second = scope.spawn(move || -> Result<(), String> {
            hears(&second, said).map_err(|why| format!("the half-close: {why}"))?;
            (&second).write_all(answer).map_err(told)?;
            if !closes {
                second.shutdown(Shutdown::Write).map_err(told)?;
            }
            Ok(())
        });
        (&first).write_all(said).map_err(told)?;
        first.shutdown(Shutdown::Write).map_err(told)?;
        let heard = hears(&first, answer).map_err(|why| format!("the answer: {why}"));
        second.join().unwrap().and(heard)
    })?;
    for app in [Some(first), kept].into_iter().flatten() {
        if let Some(cause) = app.take_error().map_err(told)? {
            return Err(format!("after its end: {cause}"));
        }
    }
    Ok(())
}

/// How a connection lives when the proxy of node two is killed.
#[derive(Clone, Copy, Debug)]
enum Live {
    Silent,
    /// The one pours, and the other reads.
    Pouring,
    /// The one has sent FIN.
    HalfClosed,
    /// The one has sent FIN, and the other pours.
    Answering,
}

/// How an application finds out.
#[derive(Clone, Copy, Debug)]
enum Sees {
    Reading,
    /// It sends, and is told this.
    Pouring(ErrorKind),
    /// It has read FIN, and asks its socket.
    Asking,
}

#[test]
fn a_killed_proxy_ends_no_live_connection_in_order() {
    let mut stage = Stage::new();
    let doors = Doors::new(&stage);
    let mut live = Vec::new();
    for nth in 0..96 {
        let (dialled, accepted) = doors.connect(nth).unwrap();
        let (one, other) = if nth / 2 % 2 == 0 { (dialled, accepted) } else { (accepted, dialled) };
        let how = [Live::Silent, Live::Pouring, Live::HalfClosed, Live::Answering][nth / 4 % 4];
        crate::stage::talks(&(one.try_clone().unwrap(), other.try_clone().unwrap())).unwrap();
        if matches!(how, Live::HalfClosed | Live::Answering) {
            one.shutdown(Shutdown::Write).unwrap();
            hears(&other, b"").unwrap();
        }
        live.push((format!("connection {nth}, {how:?}"), how, one, other));
    }
    drop(doors);
    let pours = AtomicUsize::new(0);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let mut watched = Vec::new();
        for (what, how, one, other) in &live {
            let ends = match how {
                Live::Silent => [(one, Sees::Reading), (other, Sees::Reading)],
                Live::Pouring => [(one, Sees::Pouring(ErrorKind::ConnectionReset)), (other, Sees::Reading)],
                Live::HalfClosed => [(one, Sees::Reading), (other, Sees::Asking)],
                Live::Answering => [(one, Sees::Reading), (other, Sees::Pouring(ErrorKind::BrokenPipe))],
            };
            for (end, sees) in ends {
                let pours = &pours;
                watched.push(scope.spawn(move || {
                    let told = match sees {
                        Sees::Reading => reads_until_reset(end, |_| true),
                        Sees::Asking => is_told(end),
                        Sees::Pouring(reset) => {
                            pours.fetch_add(1, Ordering::Relaxed);
                            pours_until(reset, end)
                        }
                    };
                    told.map_err(|why| format!("{what}, {sees:?}: {why}"))
                }));
            }
        }
        until("those who pour do", SOON, || match pours.load(Ordering::Relaxed) {
            48 => Ok(()),
            some => Err(format!("{some} of 48")),
        });
        std::thread::sleep(Duration::from_millis(300));
        stage.proxies[1].kill();
        watched.into_iter().filter_map(|end| end.join().unwrap().err()).collect()
    });
    assert!(wrong.is_empty(), "{} of {} ends are not told: {wrong:#?}", wrong.len(), 2 * live.len());
    println!("{} ends of connections saw a reset when a proxy was killed", 2 * live.len());
}

/// A text that hardly any other is like.
fn text(random: &mut fastrand::Rng, length: usize) -> &'static [u8] {
    static LIBRARY: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let mut all = vec![0; 2 * LONGEST];
        fastrand::Rng::with_seed(7).fill(&mut all);
        all
    });
    &LIBRARY[random.usize(..LONGEST)..][..length]
}

/// Ends a connection with RST.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Insists that exactly `said` arrives, and then FIN.
fn hears(mut from: &TcpStream, said: &[u8]) -> Result<(), String> {
    let mut heard = Vec::new();
    let end = from.read_to_end(&mut heard);
    if end.is_ok() && heard == said {
        return Ok(());
    }
    let begins = if said.starts_with(&heard) { "the beginning" } else { "not the beginning" };
    Err(format!("of {} bytes {} arrived, {begins} of it, and then {end:?}", said.len(), heard.len()))
}

/// Insists on a reset, and before it only on what was said.
fn sees_reset(from: &TcpStream, said: &[u8]) -> Result<(), String> {
    let mut said = said;
    reads_until_reset(from, |heard| {
        let as_said = said.starts_with(heard);
        said = said.get(heard.len()..).unwrap_or_default();
        as_said
    })
}

fn reads_until_reset(mut from: &TcpStream, mut as_said: impl FnMut(&[u8]) -> bool) -> Result<(), String> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Err("its end looks like one in order".to_owned()),
            Ok(read) if as_said(&buffer[..read]) => {}
            Ok(_) => return Err("what arrived was never said".to_owned()),
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(cause) => return Err(format!("instead of a reset: {cause}")),
        }
    }
}

/// Sends zeros, and insists that this ends with a reset: to who has read FIN that is EPIPE (tcp_reset, Linux 6.18), and to
/// nobody else.
fn pours_until(reset: ErrorKind, mut to: &TcpStream) -> Result<(), String> {
    let zeros = vec![0; 64 << 10];
    loop {
        match to.write_all(&zeros) {
            Ok(()) => {}
            Err(cause) if cause.kind() == reset => return Ok(()),
            Err(cause) => return Err(format!("instead of a reset: {cause}")),
        }
    }
}

/// Insists that `app`, which has read FIN, is told of a reset: by its socket's error, since it reads FIN for ever.
fn is_told(app: &TcpStream) -> Result<(), String> {
    let deadline = Instant::now() + SOON;
    loop {
        match app.take_error().map_err(|cause| cause.to_string())?.map(|cause| cause.kind()) {
            Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => return Ok(()),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            other => return Err(format!("its socket says {other:?}")),
        }
    }
}
