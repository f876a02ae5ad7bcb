//! One subject: the rules that select it, what they contribute to its map, and the map.
//!
//! A clause contributes, per peer selector, prefixes of ports under each peer key of the selector.
//! When a key comes or goes only that key is computed again, and, if it is a broad one, the keys that
//! look to it: entries that a broader key decides the same way are left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use abi::policy::{
    AGGREGATE_CLUSTER, AGGREGATE_CLUSTER_MESH, AGGREGATE_REMOTE_NODE, AGGREGATE_WORLD,
};
use model::IdentityId;

use crate::cookie::Cookies;
use crate::decide::{Distance, Draft, Item, Level, Says, entries, final_entries, says};
use crate::map::{Delta, Entry, EntryVerdict, Key, MapState};
use crate::peers::has_reserved;
use crate::port::{PortMatch, PortPrefix, Protocol};
use crate::repository::{Config, EnforcementMode, Subject, SubjectKind};
use crate::rule::{
    Clause, Direction, Entity, PeerSelector, Peers, PerDirection, Policy, Rule, SubjectSelector,
    Tier, Verdict,
};
use crate::selectors::{Change, SelectorId, Selectors, Spec, User};
use crate::trace::RuleReference;

/// The key of any peer.
const ANY: u32 = 0;
const AGGREGATES: [u32; 4] =
    [AGGREGATE_CLUSTER, AGGREGATE_CLUSTER_MESH, AGGREGATE_WORLD, AGGREGATE_REMOTE_NODE];

/// Whether a rule speaks for a subject.
pub(crate) fn selects(
    subject: &SubjectSelector,
    kind: SubjectKind,
    labels: &model::Labels,
) -> bool {
    match (subject, kind) {
        (SubjectSelector::Endpoints(selector), SubjectKind::Endpoint)
        | (SubjectSelector::Nodes(selector), SubjectKind::Host) => selector.matches(labels),
        _ => false,
    }
}

/// How a direction is enforced: what follows from the rules as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Whether it is looked up at all.
    pub(crate) enforced: bool,
    /// Whether what no rule covers may pass.
    pub(crate) default_allow: bool,
    /// Whether rules of the baseline tier are asked.
    pub(crate) baseline: bool,
    /// Whether the node may always come in.
    pub(crate) localhost: bool,
    /// Whether a rule passes to the next tier.
    pass: bool,
}

impl Shape {
    /// The shape for a subject that these rules select.
    pub(crate) fn of<'a>(
        config: &Config,
        kind: SubjectKind,
        labels: &model::Labels,
        direction: Direction,
        rules: impl Iterator<Item = &'a Rule> + Clone,
    ) -> Self {
        let without = kind == SubjectKind::Host && !config.host_firewall;
        if config.mode == EnforcementMode::Never || without {
            return Self::default();
        }
        let denies = |rule: &&Rule| rule.default_deny[direction];
        let init = kind == SubjectKind::Endpoint && has_reserved(labels, &["init"]);
        let always = config.mode == EnforcementMode::Always || init;
        let speaks =
            |rule: &Rule| rule.default_deny[direction] || !rule.clauses[direction].is_empty();
        let default_deny = always || rules.clone().any(|rule| denies(&rule));
        let baseline =
            !rules.clone().any(|rule| rule.tier == Tier::Normal && rule.default_deny[direction]);
        let asked = |rule: &&Rule| baseline || rule.tier != Tier::Baseline;
        let passes = |rule: &Rule| {
            rule.clauses[direction].iter().any(|clause| clause.verdict == Verdict::Pass)
        };
        Self {
            enforced: always || rules.clone().any(speaks),
            default_allow: !default_deny,
            baseline,
            localhost: config.allow_localhost
                && direction == Direction::Ingress
                && kind == SubjectKind::Endpoint,
            pass: rules.filter(asked).any(passes),
        }
    }

    /// Whether a rule is asked.
    pub(crate) fn asks(self, rule: &Rule) -> bool {
        self.enforced && (self.baseline || rule.tier != Tier::Baseline)
    }
}

/// Whom a contribution is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum About<'a> {
    Anybody,
    Peers(std::borrow::Cow<'a, Arc<PeerSelector>>),
}

/// What a clause says of some of its ports, to some of its peers.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) about: About<'a>,
    pub(crate) ports: &'a PortMatch,
    pub(crate) says: Says,
    pub(crate) unenforced: Option<crate::rule::Unenforced>,
}

/// The parts of a clause: the one place that knows what becomes of what is not enforced yet.
pub(crate) fn parts<'a>(clause: &'a Clause, default_deny: bool) -> Vec<Part<'a>> {
    use std::borrow::Cow;

    use crate::rule::Unenforced::{CloudGroups, Names};
    let mut parts = Vec::new();
    for port in &clause.ports {
        // Where nothing is denied by default, rules of L7 are there to make requests visible.
        let unenforced = port.unenforced.filter(|_| default_deny);
        let verdict = says(clause.verdict, unenforced.is_none());
        let mut add = |about, says, unenforced| {
            parts.push(Part { about, ports: &port.ports, says, unenforced });
        };
        let peers = match &clause.peers {
            Peers::Any => {
                add(About::Anybody, verdict, unenforced);
                continue;
            }
            Peers::Of(peers) => peers,
        };
        for peer in peers {
            match &**peer {
                PeerSelector::Entity(Entity::All) => add(About::Anybody, verdict, unenforced),
                PeerSelector::Entity(Entity::None) => {}
                PeerSelector::Name(_) | PeerSelector::CloudGroup(_) => {
                    let asks = match **peer {
                        PeerSelector::Name(_) => Names,
                        _ => CloudGroups,
                    };
                    if clause.verdict == Verdict::Deny {
                        // Whom a group of the cloud means is outside; not to know whom is no reason
                        // to let them in.
                        let world = Arc::new(PeerSelector::Entity(Entity::World));
                        add(About::Peers(Cow::Owned(world)), verdict, Some(asks));
                    } else if default_deny {
                        add(About::Anybody, says(Verdict::Allow, false), Some(asks));
                    }
                }
                _ => add(About::Peers(Cow::Borrowed(peer)), verdict, unenforced),
            }
        }
    }
    parts
}

/// Where a contribution's keys come from.
#[derive(Clone, Debug)]
enum Source {
    /// One key that is always there.
    Fixed(u32),
    Selector(SelectorId),
}

#[derive(Clone, Debug)]
enum Ports {
    Prefixes(Arc<[PortPrefix]>),
    /// The numbers that the peer gives to a name.
    OfPeer(Option<Protocol>, Arc<str>),
}

/// What a rule adds to a direction of the map, under every key of its source.
#[derive(Clone, Debug)]
struct Contribution {
    source: Source,
    ports: Ports,
    level: Level,
    says: Says,
    /// `None` for what holds by default.
    rule: Option<Arc<RuleReference>>,
}

/// Which rule of which policy, as the repository counts them.
pub(crate) type RuleAt = (u32, u16);

/// The rules that select a subject, each with its policy.
pub(crate) type Matching = BTreeMap<RuleAt, Arc<Policy>>;

/// The rules themselves.
pub(crate) fn rules(
    matching: &Matching,
) -> impl Iterator<Item = (&RuleAt, &Policy, &Rule)> + Clone {
    matching
        .iter()
        .filter_map(|(at, policy)| Some((at, &**policy, policy.rules.get(usize::from(at.1))?)))
}

#[derive(Debug, Default)]
struct Side {
    shape: Shape,
    contributions: BTreeMap<u32, Contribution>,
    next: u32,
    by_rule: BTreeMap<RuleAt, Vec<u32>>,
    /// What is contributed under each key.
    keys: HashMap<u32, Vec<u32>>,
    /// How many identities of each aggregate have a key of their own.
    single: BTreeMap<u32, usize>,
    /// Aggregates whose key must repeat what is said of anybody.
    active: BTreeSet<u32>,
    dirty: BTreeSet<u32>,
}

/// A subject whose map is kept up to date.
#[derive(Debug)]
pub(crate) struct SubjectState {
    pub(crate) subject: Subject,
    pub(crate) uses: usize,
    number: u32,
    rules: BTreeSet<RuleAt>,
    sides: PerDirection<Side>,
    pub(crate) map: MapState,
    /// What each changed entry was when changes were last taken.
    before: BTreeMap<Key, Option<Entry>>,
    enforce_before: Option<PerDirection<bool>>,
}

/// What a subject's computation looks at and writes to.
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a Config,
    pub(crate) selectors: &'a mut Selectors,
    pub(crate) cookies: &'a mut Cookies,
}

impl SubjectState {
    pub(crate) fn new(number: u32, subject: Subject) -> Self {
        Self {
            subject,
            uses: 0,
            number,
            rules: BTreeSet::new(),
            sides: PerDirection::default(),
            map: MapState::default(),
            before: BTreeMap::new(),
            // A new subject is news even if nothing is enforced.
            enforce_before: Some(PerDirection::default()),
        }
    }

    /// The rules that select it.
    pub(crate) fn rules(&self) -> &BTreeSet<RuleAt> {
        &self.rules
    }

    /// Rules changed: `matching` are those that select the subject now, `changed` those that are new or
    /// no longer what they were.
    pub(crate) fn set_rules(
        &mut self,
        matching: &Matching,
        changed: &BTreeSet<RuleAt>,
        surroundings: &mut Surroundings<'_>,
    ) {
        let old = std::mem::replace(&mut self.rules, matching.keys().copied().collect());
        for direction in Direction::BOTH {
            let selecting = rules(matching).map(|(.., rule)| rule);
            let Subject { kind, labels, .. } = &self.subject;
            let shape = Shape::of(surroundings.config, *kind, labels, direction, selecting);
            let side = &self.sides[direction];
            let rebuilt = shape != side.shape;
            self.sides[direction].shape = shape;
            // What is no longer wanted, taken out only after the new is in, so that selectors that
            // both use stay.
            let outdated: Vec<u32> = match rebuilt {
                true => self.sides[direction].contributions.keys().copied().collect(),
                false => changed
                    .iter()
                    .chain(old.difference(&self.rules))
                    .filter_map(|rule| self.sides[direction].by_rule.get(rule))
                    .flatten()
                    .copied()
                    .collect(),
            };
            if rebuilt {
                self.sides[direction].by_rule.clear();
            } else {
                let gone = changed.iter().chain(old.difference(&self.rules));
                let gone: Vec<RuleAt> = gone.copied().collect();
                gone.iter().for_each(|rule| drop(self.sides[direction].by_rule.remove(rule)));
            }
            for (at, policy, rule) in rules(matching) {
                if rebuilt || changed.contains(at) || !old.contains(at) {
                    self.add_rule(direction, *at, policy, rule, surroundings);
                }
            }
            if rebuilt {
                self.add_defaults(direction, surroundings);
            }
            for contribution in outdated {
                self.remove_contribution(direction, contribution, surroundings);
            }
            if rebuilt {
                let side = &mut self.sides[direction];
                side.dirty.extend(side.keys.keys());
                let direction_keys = self.map.entries.keys().filter(|k| k.direction == direction);
                side.dirty.extend(direction_keys.map(|key| key.peer.0));
                self.set_enforced(direction, shape.enforced);
            }
        }
        self.flush(surroundings);
    }

    fn set_enforced(&mut self, direction: Direction, enforced: bool) {
        if self.map.enforce[direction] != enforced {
            self.enforce_before.get_or_insert(self.map.enforce);
            self.map.enforce[direction] = enforced;
        }
    }

    fn add_rule(
        &mut self,
        direction: Direction,
        at: RuleAt,
        policy: &Policy,
        rule: &Rule,
        surroundings: &mut Surroundings<'_>,
    ) {
        if !self.sides[direction].shape.asks(rule) {
            return;
        }
        for clause in &rule.clauses[direction] {
            let reference = Arc::new(RuleReference::of_clause(policy, rule, clause));
            let level = |says| Level::of(says, rule.tier, clause.priority);
            // Ports that differ in nothing else become one contribution.
            let mut grouped: Vec<(About<'_>, Says, Vec<PortPrefix>)> = Vec::new();
            for part in parts(clause, rule.default_deny[direction]) {
                let prefixes = match part.ports {
                    PortMatch::Named { protocol, name } if direction == Direction::Egress => {
                        let ports = Ports::OfPeer(*protocol, name.clone());
                        let spec = match part.about {
                            About::Anybody => Spec::WithPort(None, *protocol, name.clone()),
                            About::Peers(peers) => {
                                Spec::WithPort(Some(peers.into_owned()), *protocol, name.clone())
                            }
                        };
                        let says = part.says;
                        let rule = Some(reference.clone());
                        let add =
                            |source| Contribution { source, ports, level: level(says), says, rule };
                        self.add_selected(direction, at, &spec, add, surroundings);
                        continue;
                    }
                    PortMatch::Named { protocol, name } => {
                        let own = self.subject.named_ports.iter();
                        own.filter(|port| port.is_meant_by(*protocol, name))
                            .map(|port| PortPrefix::port(port.protocol, port.port))
                            .collect()
                    }
                    ports => ports.prefixes(),
                };
                let same = grouped
                    .iter_mut()
                    .find(|(about, says, _)| (about, *says) == (&part.about, part.says));
                match same {
                    Some((.., all)) => all.extend(prefixes),
                    None => grouped.push((part.about, part.says, prefixes)),
                }
            }
            for (about, says, mut prefixes) in grouped {
                prefixes.sort();
                prefixes.dedup();
                if prefixes.is_empty() {
                    continue;
                }
                let ports = Ports::Prefixes(prefixes.into());
                let rule = Some(reference.clone());
                let add = |source| Contribution { source, ports, level: level(says), says, rule };
                match about {
                    About::Anybody => {
                        self.add_contribution(direction, Some(at), add(Source::Fixed(ANY)));
                    }
                    About::Peers(peers) => {
                        let spec = Spec::Peers(peers.into_owned());
                        self.add_selected(direction, at, &spec, add, surroundings);
                    }
                }
            }
        }
    }

    fn add_defaults(&mut self, direction: Direction, surroundings: &Surroundings<'_>) {
        let shape = self.sides[direction].shape;
        let allow = |key| Contribution {
            source: Source::Fixed(key),
            ports: Ports::Prefixes([PortPrefix::ALL].into()),
            level: Level::DEFAULT,
            says: Says::Verdict(EntryVerdict::Allow),
            rule: None,
        };
        if shape.enforced && shape.default_allow {
            self.add_contribution(direction, None, allow(ANY));
        }
        if shape.enforced && shape.localhost && surroundings.config.allow_localhost {
            self.add_contribution(direction, None, allow(IdentityId::HOST.0));
        }
    }

    fn add_selected(
        &mut self,
        direction: Direction,
        at: RuleAt,
        spec: &Spec,
        contribution: impl FnOnce(Source) -> Contribution,
        surroundings: &mut Surroundings<'_>,
    ) {
        let user = self.user(direction, self.sides[direction].next);
        let selector = surroundings.selectors.acquire(spec, user);
        let contribution = contribution(Source::Selector(selector));
        let number = self.add_contribution(direction, Some(at), contribution);
        let keys: Vec<u32> = surroundings.selectors.keys(selector).collect();
        for key in keys {
            self.sides[direction].gain(key, number, surroundings.selectors);
        }
    }

    fn add_contribution(
        &mut self,
        direction: Direction,
        at: Option<RuleAt>,
        contribution: Contribution,
    ) -> u32 {
        let side = &mut self.sides[direction];
        let number = side.next;
        side.next += 1;
        if let Source::Fixed(key) = contribution.source {
            side.keys.entry(key).or_default().push(number);
            side.dirty.insert(key);
        }
        side.contributions.insert(number, contribution);
        if let Some(at) = at {
            side.by_rule.entry(at).or_default().push(number);
        }
        number
    }

    fn remove_contribution(
        &mut self,
        direction: Direction,
        number: u32,
        surroundings: &mut Surroundings<'_>,
    ) {
        let user = self.user(direction, number);
        let side = &mut self.sides[direction];
        let Some(contribution) = side.contributions.remove(&number) else { return };
        match contribution.source {
            Source::Fixed(key) => side.lose(key, number, surroundings.selectors),
            Source::Selector(selector) => {
                let keys: Vec<u32> = surroundings.selectors.keys(selector).collect();
                for key in keys {
                    side.lose(key, number, surroundings.selectors);
                }
                surroundings.selectors.release(selector, user);
            }
        }
    }

    fn user(&self, direction: Direction, contribution: u32) -> User {
        (self.number, direction == Direction::Egress, contribution)
    }

    /// A selector that a contribution uses gained, lost or changed a key.
    pub(crate) fn key_changed(
        &mut self,
        user: User,
        key: u32,
        change: Change,
        selectors: &Selectors,
    ) {
        let (_, egress, number) = user;
        let direction = if egress { Direction::Egress } else { Direction::Ingress };
        let side = &mut self.sides[direction];
        match change {
            Change::Gained => side.gain(key, number, selectors),
            Change::Lost => side.lose(key, number, selectors),
            Change::Touched => {
                side.dirty.insert(key);
            }
        }
    }

    /// Writes what changed into the map.
    pub(crate) fn flush(&mut self, surroundings: &mut Surroundings<'_>) {
        for direction in Direction::BOTH {
            let dirty = std::mem::take(&mut self.sides[direction].dirty);
            if dirty.is_empty() {
                continue;
            }
            self.flush_side(direction, dirty, surroundings);
        }
    }

    fn flush_side(
        &mut self,
        direction: Direction,
        mut dirty: BTreeSet<u32>,
        surroundings: &mut Surroundings<'_>,
    ) {
        let side = &mut self.sides[direction];
        // Broad keys first: others look to them.
        let active: BTreeSet<u32> =
            AGGREGATES.into_iter().filter(|class| side.is_active(*class)).collect();
        dirty.extend(active.symmetric_difference(&side.active));
        side.active = active;
        // What changed under broad keys, for the keys that look to them.
        let mut below: BTreeMap<u32, Vec<PortPrefix>> = BTreeMap::new();
        if dirty.remove(&ANY) {
            below.insert(ANY, self.write(direction, ANY, surroundings));
            dirty.extend(AGGREGATES);
        }
        for class in AGGREGATES {
            if dirty.remove(&class) {
                below.insert(class, self.write(direction, class, surroundings));
            }
        }
        let side = &self.sides[direction];
        if !side.shape.pass {
            below.retain(|_, changed| !changed.is_empty());
        }
        let looking = side.keys.keys().filter(|_| !below.is_empty());
        for key in looking.filter(|key| **key != ANY && !AGGREGATES.contains(key)) {
            let Some(changed) = below.get(&surroundings.selectors.aggregate(*key)) else {
                continue;
            };
            // With passes a key looks at what is said under the broader ones, whatever the entries.
            if side.shape.pass || side.speaks_of(*key, changed, surroundings.selectors) {
                dirty.insert(*key);
            }
        }
        for key in dirty {
            self.write(direction, key, surroundings);
        }
    }

    /// Computes what is under a key, and puts it into the map. Gives the prefixes that changed.
    fn write(
        &mut self,
        direction: Direction,
        key: u32,
        surroundings: &mut Surroundings<'_>,
    ) -> Vec<PortPrefix> {
        let drafts: Vec<Draft<Arc<RuleReference>>> =
            self.drafts(direction, key, surroundings.selectors).into_iter().map(named).collect();
        let peer = IdentityId(key);
        let first = Key { direction, peer, ports: PortPrefix::ALL };
        let mut old: BTreeMap<Key, Entry> = self
            .map
            .entries
            .range(first..)
            .take_while(|(key, _)| (key.direction, key.peer) == (direction, peer))
            .map(|(key, entry)| (*key, *entry))
            .collect();
        let mut changed = Vec::new();
        for mut draft in drafts {
            draft.rules.sort();
            draft.rules.dedup();
            let key = Key { direction, peer, ports: draft.ports };
            let before = old.remove(&key);
            let same = |before: Entry| {
                (before.verdict, before.precedence) == (draft.verdict, draft.precedence)
                    && surroundings.cookies.rules(before.cookie) == &draft.rules[..]
            };
            if before.is_some_and(same) {
                continue;
            }
            let cookie = surroundings.cookies.acquire(draft.rules);
            let entry = Entry { verdict: draft.verdict, precedence: draft.precedence, cookie };
            changed.push(draft.ports);
            self.replace(key, before, Some(entry), surroundings.cookies);
        }
        for (key, entry) in old {
            changed.push(key.ports);
            self.replace(key, Some(entry), None, surroundings.cookies);
        }
        changed
    }

    fn replace(
        &mut self,
        key: Key,
        before: Option<Entry>,
        after: Option<Entry>,
        cookies: &mut Cookies,
    ) {
        self.before.entry(key).or_insert(before);
        if let Some(before) = before {
            cookies.release(before.cookie);
            self.map.digest = self.map.digest.wrapping_sub(digest(key, before));
        }
        match after {
            Some(after) => {
                self.map.digest = self.map.digest.wrapping_add(digest(key, after));
                self.map.entries.insert(key, after);
            }
            None => {
                self.map.entries.remove(&key);
            }
        }
    }

    fn drafts<'a>(
        &'a self,
        direction: Direction,
        key: u32,
        selectors: &Selectors,
    ) -> Vec<Draft<Option<&'a Arc<RuleReference>>>> {
        let side = &self.sides[direction];
        let own = side.items(key, selectors);
        let class = selectors.aggregate(key);
        let is_class = AGGREGATES.contains(&key);
        if side.shape.pass {
            let (mut inherited, distance) = match key {
                ANY => (Vec::new(), Distance::Any),
                _ if is_class => (Vec::new(), Distance::Aggregate),
                _ if class == ANY => (Vec::new(), Distance::Identity),
                _ => (side.items(class, selectors), Distance::Identity),
            };
            if key != ANY {
                inherited.extend(side.items(ANY, selectors));
            }
            return final_entries(&own, &inherited, distance);
        }
        if key == ANY {
            return entries(own);
        }
        if is_class {
            if !side.active.contains(&key) {
                return Vec::new();
            }
            let mut items = own;
            items.extend(side.items(ANY, selectors));
            return entries(items);
        }
        // What the broader key decides with the same weight need not be said again.
        let broader = IdentityId(if side.active.contains(&class) { class } else { ANY });
        let mut drafts = entries(own);
        drafts.retain(|draft| {
            let covering = self.map.covering(direction, broader, draft.ports);
            covering.is_none_or(|(_, entry)| entry.precedence < draft.precedence)
        });
        drafts
    }

    /// What changed since this was last called.
    pub(crate) fn take_changes(&mut self) -> Option<Delta> {
        let enforce_changed = self.enforce_before.take().is_some();
        let mut delta = Delta { enforce: self.map.enforce, ..Delta::default() };
        for (key, before) in std::mem::take(&mut self.before) {
            match (before, self.map.entries.get(&key)) {
                (before, Some(now)) if before != Some(*now) => delta.written.push((key, *now)),
                (Some(_), None) => delta.removed.push(key),
                _ => {}
            }
        }
        delta.written.sort_by_key(|(_, entry)| entry.verdict == EntryVerdict::Allow);
        let changed = enforce_changed || !delta.removed.is_empty() || !delta.written.is_empty();
        changed.then_some(delta)
    }

    /// Whether there is something to take.
    pub(crate) fn has_changes(&self) -> bool {
        self.enforce_before.is_some() || !self.before.is_empty()
    }

    /// Gives back everything that it uses.
    pub(crate) fn dismantle(mut self, surroundings: &mut Surroundings<'_>) {
        for direction in Direction::BOTH {
            let all: Vec<u32> = self.sides[direction].contributions.keys().copied().collect();
            for contribution in all {
                self.remove_contribution(direction, contribution, surroundings);
            }
        }
        for entry in self.map.entries.values() {
            surroundings.cookies.release(entry.cookie);
        }
    }
}

impl Side {
    fn gain(&mut self, key: u32, contribution: u32, selectors: &Selectors) {
        self.keys.entry(key).or_insert_with(|| {
            *self.single.entry(selectors.aggregate(key)).or_default() += 1;
            Vec::new()
        });
        if let Some(all) = self.keys.get_mut(&key) {
            all.push(contribution);
        }
        self.dirty.insert(key);
    }

    fn lose(&mut self, key: u32, contribution: u32, selectors: &Selectors) {
        let Some(all) = self.keys.get_mut(&key) else { return };
        all.retain(|one| *one != contribution);
        if all.is_empty() {
            self.keys.remove(&key);
            if let Some(count) = self.single.get_mut(&selectors.aggregate(key)) {
                *count = count.saturating_sub(1);
            }
        }
        self.dirty.insert(key);
    }

    /// Whether lookups under an aggregate, or under an identity of it, may find something, so that
    /// the key of anybody is not asked. With passes every key says all that there is to say.
    fn is_active(&self, class: u32) -> bool {
        !self.shape.pass
            && (self.keys.contains_key(&class) || self.single.get(&class).is_some_and(|n| *n > 0))
    }

    /// Whether anything is said under a key of what is in one of these prefixes, or around it.
    fn speaks_of(&self, key: u32, prefixes: &[PortPrefix], selectors: &Selectors) -> bool {
        let items = self.items(key, selectors);
        let touches =
            |one: PortPrefix| prefixes.iter().any(|other| one.covers(*other) || other.covers(one));
        items.iter().any(|item| touches(item.ports))
    }

    /// What is said under a key.
    fn items<'a>(
        &'a self,
        key: u32,
        selectors: &Selectors,
    ) -> Vec<Item<Option<&'a Arc<RuleReference>>>> {
        let numbers = self.keys.get(&key).into_iter().flatten();
        let contributions = numbers.filter_map(|number| self.contributions.get(number));
        let mut items = Vec::new();
        for Contribution { ports, level, says, rule, .. } in contributions {
            let rule = rule.as_ref();
            let item = |ports| Item { ports, level: *level, says: *says, rule };
            match ports {
                Ports::Prefixes(prefixes) => items.extend(prefixes.iter().copied().map(item)),
                Ports::OfPeer(protocol, name) => {
                    let named = selectors.identity(key).into_iter().flat_map(|id| &id.named_ports);
                    let meant = named.filter(|port| port.is_meant_by(*protocol, name));
                    items
                        .extend(meant.map(|port| item(PortPrefix::port(port.protocol, port.port))));
                }
            }
        }
        items
    }
}

/// The draft with the rules that have a name; what holds by default has none.
fn named(draft: Draft<Option<&Arc<RuleReference>>>) -> Draft<Arc<RuleReference>> {
    let Draft { ports, verdict, precedence, rules } = draft;
    let rules = rules.into_iter().flatten().cloned().collect();
    Draft { ports, verdict, precedence, rules }
}

/// A number for an entry; those of a map are added up, in any order.
fn digest(key: Key, entry: Entry) -> u128 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, key, entry).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}
