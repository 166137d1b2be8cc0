//! What happens because time passes.

use std::time::Instant;

use super::error::Error;
use super::machine::{
    ACK_DEADLINE, Closing, GOAWAY_DEADLINE, GREETING_DEADLINE, Machine, PING_AFTER, PING_DEADLINE,
};

/// What our PINGs carry that ask whether the peer is there.
pub(super) const SIGN_OF_LIFE: [u8; 8] = *b"adit:up?";
/// What the PING behind the first GOAWAY carries: its answer tells that the peer has read the GOAWAY.
pub(super) const LAST_CALL: [u8; 8] = *b"adit:end";

impl Machine {
    /// When [`on_time`](Self::on_time) has something to do; `None` once there is nothing to wait for. Any call may bring it nearer
    /// or move it further away: ask again after each turn.
    pub fn deadline(&self) -> Option<Instant> {
        if self.failed.is_some() || self.is_finished() {
            return None;
        }
        let greeting = (!self.greeted).then(|| self.started + GREETING_DEADLINE);
        let ack = (!self.acked).then(|| self.started + ACK_DEADLINE);
        let goaway = match self.closing {
            Closing::Announced(since) => Some(since + GOAWAY_DEADLINE),
            Closing::No | Closing::Final(_) => None,
        };
        [greeting, ack, goaway, Some(self.silence())].into_iter().flatten().min()
    }

    /// When the peer's silence has lasted long enough to ask, or to give up.
    fn silence(&self) -> Instant {
        match self.pinged {
            None => self.heard + PING_AFTER,
            // Whoever still sends is alive, even if the answer waits behind what it sends.
            Some(pinged) => pinged.max(self.heard) + PING_DEADLINE,
        }
    }

    /// Does what is due at `now`: asks for a sign of life (and lets go of buffers), sends the second GOAWAY, gives up.
    ///
    /// Read first whatever has arrived. After a pause of this process, what the peer said in time may still lie in the socket.
    ///
    /// # Errors
    /// As of [`read`](Self::read): the tunnel cannot go on.
    pub fn on_time(&mut self, now: Instant) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.is_finished() {
            return Ok(());
        }
        if !self.greeted && now >= self.started + GREETING_DEADLINE {
            return Err(self.fail(Error::Silent(GREETING_DEADLINE)));
        }
        if !self.acked && now >= self.started + ACK_DEADLINE {
            return Err(self.fail(Error::SettingsTimeout(ACK_DEADLINE)));
        }
        if let Closing::Announced(since) = self.closing
            && now >= since + GOAWAY_DEADLINE
        {
            self.close();
        }
        if now < self.silence() {
            return Ok(());
        }
        if self.pinged.is_some() {
            return Err(self.fail(Error::PingTimeout(PING_DEADLINE)));
        }
        self.pinged = Some(now);
        // Nothing has come for a while: what is kept for the next frames is not worth its memory.
        self.block.shrink_to_fit();
        self.output.release();
        self.output.ping(SIGN_OF_LIFE, false);
        Ok(())
    }
}
