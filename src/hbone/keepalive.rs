//! PINGs that find a dead peer: the first 10 s after the tunnel is up, an answer within 20 s, then 10 s pause.

use std::time::Duration;

use h2::{Ping, PingPong};

const PAUSE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(20);

/// Returns when the peer no longer answers, with the reason; never while it does.
pub(super) async fn watch(mut pings: PingPong) -> String {
    loop {
        tokio::time::sleep(PAUSE).await;
        match tokio::time::timeout(ANSWER, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(cause)) => return format!("HBONE ping error: {cause}"),
            Err(_) => return format!("HBONE ping timeout: no answer within {}s", ANSWER.as_secs()),
        }
    }
}
