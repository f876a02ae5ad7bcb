//! What clauses say when several cover the same traffic. Maps and explanations are both made here.

use abi::policy::precedence;

use crate::map::EntryVerdict;
use crate::port::PortPrefix;
use crate::rule::{Tier, Verdict};

/// What something that covers traffic says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Says {
    Verdict(EntryVerdict),
    Pass,
}

/// When something is asked: the lower first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Level(u32);

impl Level {
    /// After all rules: what holds by default.
    pub(crate) const DEFAULT: Self = Self(0xff_fffe);
    const NORMAL: u32 = 0x40_0000;
    const BASELINE: u32 = 0x80_0000;

    /// When a clause of this tier and priority is asked that says this. One that is not enforced yet
    /// only says why there is no allow: what holds by default beats it.
    pub(crate) fn of(says: Says, tier: Tier, priority: u32) -> Self {
        if says == Says::Verdict(EntryVerdict::NotEnforced) {
            return Self::DEFAULT;
        }
        match tier {
            Tier::Admin => Self(priority),
            Tier::Normal => Self(Self::NORMAL + priority),
            Tier::Baseline => Self(Self::BASELINE + priority),
        }
    }

    /// The first level of the tier after that of this one.
    fn next_tier(self) -> Self {
        match self.0 {
            0..Self::NORMAL => Self(Self::NORMAL),
            Self::NORMAL..Self::BASELINE => Self(Self::BASELINE),
            _ => Self::DEFAULT,
        }
    }
}

/// What covers some traffic, when it is asked and what it says; `rule` is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item<R> {
    pub(crate) ports: PortPrefix,
    pub(crate) level: Level,
    pub(crate) says: Says,
    pub(crate) rule: R,
}

impl<R> Item<R> {
    /// Among items that are asked together, a deny counts more than an allow, that more than one that
    /// is restricted, and a pass least.
    fn weight(&self) -> (std::cmp::Reverse<Level>, u16) {
        let says = match self.says {
            Says::Verdict(verdict) => u16::from(verdict.precedence()) + 1,
            Says::Pass => 0,
        };
        (std::cmp::Reverse(self.level), says)
    }

    /// The precedence of an entry for this item.
    fn precedence(&self, verdict: EntryVerdict) -> u32 {
        precedence(self.level.0, verdict.precedence())
    }
}

/// What is decided, and by which items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision<R> {
    /// `None`: nothing is said, which is a denial by default.
    pub(crate) verdict: Option<EntryVerdict>,
    /// Those that say so with equal weight, or that passed it on to where nothing is said.
    pub(crate) rules: Vec<R>,
}

/// Decides about traffic that all of these items cover.
pub(crate) fn decide<R: Copy>(covering: &[Item<R>]) -> Decision<R> {
    let mut from = Level(0);
    let mut passed = Vec::new();
    loop {
        let asked = covering.iter().filter(|item| item.level >= from);
        let Some(best) = asked.clone().max_by_key(|item| item.weight()) else {
            return Decision { verdict: None, rules: passed };
        };
        let equal = asked.filter(|item| item.weight() == best.weight()).map(|item| item.rule);
        match best.says {
            Says::Verdict(verdict) => {
                return Decision { verdict: Some(verdict), rules: equal.collect() };
            }
            Says::Pass => {
                passed.extend(equal);
                from = best.level.next_tier();
            }
        }
    }
}

/// An entry of a policy map under one peer key, before its rules have a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft<R> {
    pub(crate) ports: PortPrefix,
    pub(crate) verdict: EntryVerdict,
    pub(crate) precedence: u32,
    pub(crate) rules: Vec<R>,
}

/// The entries for items without a pass: those that a longest-prefix lookup must find so that it
/// finds the one of the highest precedence. What a broader item decides anyway is left out.
pub(crate) fn entries<R: Copy>(mut items: Vec<Item<R>>) -> Vec<Draft<R>> {
    // A prefix comes before those that it covers, the heaviest item of a prefix first.
    items.sort_by(|a, b| a.ports.cmp(&b.ports).then(b.weight().cmp(&a.weight())));
    let mut drafts: Vec<Draft<R>> = Vec::new();
    // Drafts that cover the current prefix, the narrowest last; their precedence grows.
    let mut around: Vec<usize> = Vec::new();
    for item in items {
        let Says::Verdict(verdict) = item.says else { continue };
        let precedence = item.precedence(verdict);
        while around.last().is_some_and(|last| !drafts[*last].ports.covers(item.ports)) {
            around.pop();
        }
        let nearest = around.last().map(|last| &mut drafts[*last]);
        match nearest {
            Some(same) if same.ports == item.ports && same.precedence == precedence => {
                same.rules.push(item.rule);
            }
            Some(nearest) if nearest.precedence >= precedence => {}
            _ => {
                around.push(drafts.len());
                let rules = vec![item.rule];
                drafts.push(Draft { ports: item.ports, verdict, precedence, rules });
            }
        }
    }
    drafts
}

/// How far from the packet's own identity a key is. With passes, a nearer key decides alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distance {
    Identity,
    Aggregate,
    Any,
}

/// The entries for items of which some pass, under a key that has `own` items and inherits others.
/// Each entry says what is decided in the end, and a nearer key's entry beats those of farther ones;
/// so within what its own items cover a key must say everything.
pub(crate) fn final_entries<R: Copy>(
    own: &[Item<R>],
    inherited: &[Item<R>],
    distance: Distance,
) -> Vec<Draft<R>> {
    let own = own.iter().map(|item| (*item, true));
    let mut all: Vec<(Item<R>, bool)> =
        own.chain(inherited.iter().map(|item| (*item, false))).collect();
    all.sort_by_key(|(item, _)| item.ports);
    let mut drafts: Vec<Draft<R>> = Vec::new();
    // What covers the current prefix: items, and whether each is an own one; drafts, the last narrowest.
    let mut covering: Vec<Item<R>> = Vec::new();
    let mut owns: Vec<bool> = Vec::new();
    let mut around: Vec<usize> = Vec::new();
    for same in all.chunk_by(|(one, _), (other, _)| one.ports == other.ports) {
        let ports = same[0].0.ports;
        while covering.last().is_some_and(|last| !last.ports.covers(ports)) {
            covering.pop();
            owns.pop();
        }
        while around.last().is_some_and(|last| !drafts[*last].ports.covers(ports)) {
            around.pop();
        }
        covering.extend(same.iter().map(|(item, _)| *item));
        owns.extend(same.iter().map(|(_, own)| own));
        if !owns.contains(&true) {
            continue;
        }
        let Decision { verdict, rules } = decide(&covering);
        let verdict = verdict.unwrap_or(EntryVerdict::Deny);
        if around.last().is_some_and(|nearest| drafts[*nearest].verdict == verdict) {
            continue;
        }
        let precedence = precedence(distance as u32, verdict.precedence());
        around.push(drafts.len());
        drafts.push(Draft { ports, verdict, precedence, rules });
    }
    drafts
}

/// What a clause's verdict becomes.
pub(crate) fn says(verdict: Verdict, enforced: bool) -> Says {
    match verdict {
        Verdict::Allow if enforced => Says::Verdict(EntryVerdict::Allow),
        Verdict::Allow => Says::Verdict(EntryVerdict::NotEnforced),
        Verdict::Deny => Says::Verdict(EntryVerdict::Deny),
        Verdict::Pass => Says::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;
    use EntryVerdict::{Allow, Deny, NotEnforced};

    const TCP: PortPrefix = PortPrefix::protocol(Protocol::TCP);
    const HTTP: PortPrefix = PortPrefix::port(Protocol::TCP, 80);

    fn item(ports: PortPrefix, tier: Tier, verdict: EntryVerdict, rule: u32) -> Item<u32> {
        let says = Says::Verdict(verdict);
        Item { ports, level: Level::of(says, tier, 0), says, rule }
    }

    fn pass(ports: PortPrefix, rule: u32) -> Item<u32> {
        Item { ports, level: Level::of(Says::Pass, Tier::Admin, 0), says: Says::Pass, rule }
    }

    #[track_caller]
    fn check(items: &[Item<u32>], expected: &[(PortPrefix, EntryVerdict, &[u32])]) {
        let entries = entries(items.to_vec());
        let found: Vec<_> =
            entries.iter().map(|draft| (draft.ports, draft.verdict, &draft.rules[..])).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_deny_takes_what_it_covers() {
        let normal = Tier::Normal;
        check(&[item(HTTP, normal, Allow, 1), item(TCP, normal, Deny, 2)], &[(TCP, Deny, &[2])]);
        check(
            &[item(HTTP, normal, Deny, 1), item(TCP, normal, Allow, 2)],
            &[(TCP, Allow, &[2]), (HTTP, Deny, &[1])],
        );
    }

    #[test]
    fn equals_are_merged_and_what_is_covered_is_left_out() {
        let normal = Tier::Normal;
        check(
            &[
                item(HTTP, normal, Allow, 1),
                item(HTTP, normal, Allow, 2),
                item(HTTP, normal, NotEnforced, 3),
            ],
            &[(HTTP, Allow, &[1, 2])],
        );
        check(
            &[item(HTTP, normal, Allow, 1), item(PortPrefix::ALL, normal, Allow, 2)],
            &[(PortPrefix::ALL, Allow, &[2])],
        );
    }

    #[test]
    fn an_earlier_tier_counts_more() {
        check(
            &[item(HTTP, Tier::Normal, Deny, 1), item(TCP, Tier::Admin, Allow, 2)],
            &[(TCP, Allow, &[2])],
        );
        check(
            &[item(HTTP, Tier::Admin, Deny, 1), item(TCP, Tier::Normal, Allow, 2)],
            &[(TCP, Allow, &[2]), (HTTP, Deny, &[1])],
        );
    }

    #[test]
    fn a_pass_leaves_it_to_the_next_tier() {
        let allow = item(TCP, Tier::Normal, Allow, 2);
        assert_eq!(decide(&[pass(TCP, 1), allow]).verdict, Some(Allow));
        assert_eq!(decide(&[pass(TCP, 1)]).verdict, None);
        let level = Level::of(Says::Verdict(Deny), Tier::Admin, 5);
        let later = Item { level, ..item(TCP, Tier::Admin, Deny, 3) };
        assert_eq!(decide(&[pass(TCP, 1), later, allow]).rules, [2]);
    }

    #[test]
    fn a_key_says_everything_within_what_it_covers() {
        let own = [pass(TCP, 1)];
        let inherited =
            [item(PortPrefix::ALL, Tier::Normal, Deny, 2), item(HTTP, Tier::Normal, Allow, 3)];
        let found = final_entries(&own, &inherited, Distance::Identity);
        let found: Vec<_> = found.iter().map(|draft| (draft.ports, draft.verdict)).collect();
        assert_eq!(found, [(TCP, Deny)], "a deny of the whole protocol beats the allow of a port");
    }
}
