//! At most so many writes in so much time.

use std::time::Duration;

use tokio::time::Instant;

/// A budget of writes that is full again at each end of an interval.
#[derive(Clone, Debug)]
pub struct Pace {
    limit: u32,
    interval: Duration,
    ends: Option<Instant>,
    left: u32,
}

impl Pace {
    /// At most `limit` writes per `interval`.
    pub fn new(limit: u32, interval: Duration) -> Self {
        Self { limit: limit.max(1), interval, ends: None, left: 0 }
    }

    /// Takes one write out of the budget at `now`, or says when there is one again.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        match self.ends {
            Some(ends) if now < ends && self.left == 0 => return Err(ends),
            Some(ends) if now < ends => {}
            _ => {
                self.ends = Some(now + self.interval);
                self.left = self.limit;
            }
        }
        self.left -= 1;
        Ok(())
    }

    /// Waits until a write may be made.
    pub async fn ready(&mut self) {
        while let Err(again) = self.take(Instant::now()) {
            tokio::time::sleep_until(again).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_interval_sees_more_than_the_limit() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(2, Duration::from_secs(1));
        assert_eq!(pace.take(at(0)), Ok(()));
        assert_eq!(pace.take(at(900)), Ok(()));
        assert_eq!(pace.take(at(999)), Err(at(1000)));
        assert_eq!(pace.take(at(1500)), Ok(()));
        assert_eq!(pace.take(at(1500)), Ok(()));
        assert_eq!(pace.take(at(1500)), Err(at(2500)));
    }

    #[tokio::test(start_paused = true)]
    async fn many_writes_take_their_time() {
        let start = Instant::now();
        let mut pace = Pace::new(10, Duration::from_secs(60));
        for _ in 0..25 {
            pace.ready().await;
        }
        assert_eq!(start.elapsed().as_secs(), 120);
    }
}
