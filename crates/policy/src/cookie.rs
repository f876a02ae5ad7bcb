//! Cookies: numbers that stand for the rules which made an entry, so that an event can name them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::trace::RuleReference;

/// Rules that decide together, sorted.
pub(crate) type RuleSet = Box<[Arc<RuleReference>]>;

/// How many sets are remembered after their last entry is gone, for events that are on their way.
const RETIRED_MAX: usize = 4096;

/// The sets that entries name.
#[derive(Debug, Default)]
pub(crate) struct Cookies {
    by_set: HashMap<RuleSet, u32>,
    by_cookie: BTreeMap<u32, (RuleSet, usize)>,
    retired: VecDeque<u32>,
    last: u32,
}

impl Cookies {
    /// The cookie of a set, sorted, for one more entry. No rules have cookie 0.
    pub(crate) fn acquire(&mut self, rules: Vec<Arc<RuleReference>>) -> u32 {
        if rules.is_empty() {
            return 0;
        }
        let set: RuleSet = rules.into();
        if let Some(cookie) = self.by_set.get(&set) {
            if let Some((_, uses)) = self.by_cookie.get_mut(cookie) {
                *uses += 1;
            }
            return *cookie;
        }
        let cookie = self.free_number();
        self.by_set.insert(set.clone(), cookie);
        self.by_cookie.insert(cookie, (set, 1));
        cookie
    }

    /// Numbers go up and round, so that a free one rests as long as possible.
    fn free_number(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.by_cookie.contains_key(&self.last) {
                return self.last;
            }
        }
    }

    /// An entry with this cookie is gone.
    pub(crate) fn release(&mut self, cookie: u32) {
        let Some((_, uses)) = self.by_cookie.get_mut(&cookie) else { return };
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        self.retired.push_back(cookie);
        while self.retired.len() > RETIRED_MAX {
            let Some(oldest) = self.retired.pop_front() else { break };
            let unused = self.by_cookie.get(&oldest).is_some_and(|(_, uses)| *uses == 0);
            // One that came back into use and went again is further back in the queue, too.
            if unused
                && !self.retired.contains(&oldest)
                && let Some((set, _)) = self.by_cookie.remove(&oldest)
            {
                self.by_set.remove(&set);
            }
        }
    }

    /// The rules that a cookie stands for.
    pub(crate) fn rules(&self, cookie: u32) -> &[Arc<RuleReference>] {
        self.by_cookie.get(&cookie).map_or(&[], |(set, _)| set)
    }
}
