//! What can be done with objects: the verbs, independent of how they are asked for.
//!
//! Every write takes the same way: decode by the schema of the requested version,
//! rules of the kind (`strategy`), who owns which field (`ownership`), then the
//! store, which refuses it if the object changed meanwhile; then it starts over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde_json::{Value, json};

use super::attributes::Attributes;
use super::object::{self, Key, Object};
use super::rbac::{Authorizer, CLUSTER_ROLES};
use super::resource::{Catalog, Resource};
use super::schema::object_at;
use super::selector::Selector;
use super::status::{ApiError, FieldError};
use super::store::{Objects, Refused, Store};
use super::token::Signer;
use super::user::User;
use super::{convert, crd, ownership, patch, pod, service, strategy};

/// Times a write is started over when others are faster.
const ATTEMPTS_MAX: usize = 100;
/// Times another random suffix is tried for `generateName`.
const GENERATED_NAMES_MAX: usize = 8;

/// All state of the API server.
pub struct Api {
    pub store: Store,
    catalog: RwLock<Arc<Catalog>>,
    services: Mutex<service::Allocations>,
    /// Certificate of the authority, which every namespace gets as `kube-root-ca.crt`.
    pub ca_pem: String,
    pub(super) authorizer: Authorizer,
    pub(super) signer: Signer,
}

/// What a request is about.
#[derive(Clone, Debug)]
pub struct Target {
    pub resource: Arc<Resource>,
    /// Empty for cluster-wide resources and for all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    pub subresource: String,
}

/// How a write is to be done.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub manager: String,
    pub validation: FieldValidation,
    /// Server-side apply takes over fields of others.
    pub force: bool,
    /// Who must have the rights that the write gives to others. `None`: the lab itself.
    pub user: Option<Arc<User>>,
}

impl WriteOptions {
    /// For writes of the lab's own parts.
    pub fn by(manager: &str) -> Self {
        Self {
            dry_run: false,
            manager: manager.to_owned(),
            validation: FieldValidation::Ignore,
            force: false,
            user: None,
        }
    }
}

/// What is done about fields that the schema does not know. They are dropped in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The result of a write.
#[derive(Debug)]
pub struct Outcome {
    pub object: Arc<Object>,
    pub created: bool,
    /// The object is gone now.
    pub deleted: bool,
    pub warnings: Vec<String>,
}

/// What part of a collection is wanted.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub selector: Selector,
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: String,
}

/// A collection, or a chunk of it.
#[derive(Debug)]
pub struct Listed {
    pub resource_version: u64,
    pub items: Vec<Arc<Object>>,
    pub continue_token: Option<String>,
    pub remaining: Option<usize>,
}

/// The body of a DELETE request, or its query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Propagation,
    pub dry_run: bool,
}

/// What happens to the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Background,
    Foreground,
    Orphan,
}

impl Target {
    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }

    pub fn named(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.plural, &self.resource.group, &self.name)
    }

    pub fn stale(&self) -> ApiError {
        ApiError::stale(&self.resource.plural, &self.resource.group, &self.name)
    }

    fn conflict(&self, why: &str) -> ApiError {
        ApiError::conflict(&self.resource.plural, &self.resource.group, &self.name, why)
    }

    fn invalid(&self, name: &str, errors: &[FieldError]) -> ApiError {
        ApiError::invalid(&self.resource.kind, &self.resource.group, name, errors)
    }
}

impl Api {
    /// Whose tokens are signed by a key of their own.
    pub fn new(ca_pem: String) -> Self {
        let signer = Signer::generate().and_then(|key| Signer::new(&key));
        Self::signing(ca_pem, signer.expect("the operating system has random numbers"))
    }

    pub(super) fn signing(ca_pem: String, signer: Signer) -> Self {
        let catalog = RwLock::new(Arc::new(Catalog::built_in()));
        Self {
            store: Store::default(),
            catalog,
            services: Mutex::default(),
            ca_pem,
            authorizer: Authorizer::default(),
            signer,
        }
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the catalog as a whole.
    pub fn edit_catalog(&self, edit: impl FnOnce(&mut Catalog)) {
        let mut guard = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        edit(Arc::make_mut(&mut guard));
    }

    /// A resource by its store name: `pods`, `leases.coordination.k8s.io`.
    pub fn target(&self, id: &str, namespace: &str, name: &str) -> Result<Target, ApiError> {
        let resource = self.catalog().by_id(id).cloned().ok_or_else(ApiError::no_such_path)?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Ok(Target { resource, namespace, name, subresource: String::new() })
    }

    pub fn get(&self, target: &Target) -> Result<Arc<Object>, ApiError> {
        self.store.get(&target.resource.id, &target.key()).ok_or_else(|| target.not_found())
    }

    pub fn list(&self, target: &Target, options: &ListOptions) -> Result<Listed, ApiError> {
        let id = &target.resource.id;
        let (version, objects, from, kept) = if options.continue_token.is_empty() {
            let (version, objects) = self.store.list(id);
            (version, objects, Key::new(&target.namespace, ""), None)
        } else {
            let token = ContinueToken::parse(&options.continue_token)?;
            match self.store.snapshot(id, token.version, token.snapshot) {
                Some(objects) => (token.version, objects, token.next, Some(token.snapshot)),
                None => {
                    return Err(ApiError::expired(
                        "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
                    ));
                }
            }
        };
        let in_namespace =
            |key: &Key| target.namespace.is_empty() || *key.namespace == *target.namespace;
        let mut items = Vec::new();
        let mut next = None;
        for (key, object) in objects.range(from..).take_while(|(key, _)| in_namespace(key)) {
            if !options.selector.matches(object) {
                continue;
            }
            if options.limit > 0 && items.len() == options.limit {
                next = Some(key.clone());
                break;
            }
            items.push(object.clone());
        }
        let mut listed =
            Listed { resource_version: version, items, continue_token: None, remaining: None };
        match next {
            Some(next) => {
                if options.selector.is_empty() {
                    let rest = objects.range(next.clone()..);
                    listed.remaining = Some(rest.take_while(|(key, _)| in_namespace(key)).count());
                }
                let snapshot =
                    kept.unwrap_or_else(|| self.store.keep_snapshot(id, version, objects));
                listed.continue_token = Some(ContinueToken { version, snapshot, next }.to_text());
            }
            None => {
                if let Some(number) = kept {
                    self.store.drop_snapshot(number);
                }
            }
        }
        Ok(listed)
    }

    /// The objects of a collection at this moment, for watches that begin with them.
    pub fn snapshot(&self, target: &Target) -> (u64, Objects) {
        self.store.list(&target.resource.id)
    }

    pub fn create(
        &self,
        target: &Target,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let resource = &target.resource;
        let warnings = strategy::decode(resource, &mut value, options.validation)?;
        self.check_place(target, &mut value)?;
        let meta = object_at(&mut value, "metadata");
        if !target.name.is_empty() {
            meta.insert("name".into(), json!(target.name));
        }
        if meta
            .get("resourceVersion")
            .and_then(Value::as_str)
            .is_some_and(|v| !v.is_empty() && v != "0")
        {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let generated = meta.get("name").and_then(Value::as_str).unwrap_or_default().is_empty();
        let prefix =
            meta.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
        if generated && prefix.is_empty() {
            let error = FieldError::required("metadata.name", "name or generateName is required");
            return Err(target.invalid("", &[error]));
        }
        for attempt in 0.. {
            let mut value = value.clone();
            if generated {
                // Room for the suffix in the 63 characters of a name.
                let stem: String = prefix.chars().take(58).collect();
                value["metadata"]["name"] = json!(stem + &object::name_suffix());
            }
            let tries_left = generated && attempt + 1 < GENERATED_NAMES_MAX;
            match self.create_named(target, value, options) {
                Err(error) if error.is_already_exists() && tries_left => {}
                Err(error) => return Err(error),
                Ok(object) => {
                    return Ok(Outcome { object, created: true, deleted: false, warnings });
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    fn create_named(
        &self,
        target: &Target,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Object>, ApiError> {
        let resource = &target.resource;
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        strategy::stamp_new(&mut value);
        strategy::prepare_create(resource, &mut value);
        let errors = strategy::validate(resource, &value);
        if !errors.is_empty() {
            return Err(target.invalid(&name, &errors));
        }
        self.check_escalation(target, &value, None, options)?;
        self.check_definition(resource)?;
        self.check_namespace(target, &value)?;
        self.admit_service_account(target, &mut value)?;
        if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
            crd::set_conditions(&mut value, &self.catalog());
        }
        ownership::record(None, &mut value, resource, &options.manager, "");
        // Held until the object is stored: nobody else may be given the same.
        let _services = self.allocate(target, &mut value, None)?;
        convert::to_storage(resource, &mut value);
        if options.dry_run {
            let key = Key::new(&target.namespace, &name);
            if self.store.get(&resource.id, &key).is_some() {
                return Err(ApiError::already_exists(&resource.plural, &resource.group, &name));
            }
            return Ok(dry_object(&mut value, resource));
        }
        let created = self.store.create(&resource.id, &mut value, resource.indexed);
        let object = created.map_err(|refused| match refused {
            Refused::Unwritten => unwritten(),
            _ => ApiError::already_exists(&resource.plural, &resource.group, &name),
        })?;
        self.after_write(resource, &value);
        Ok(object)
    }

    /// The object must belong to the namespace that the request names.
    fn check_place(&self, target: &Target, value: &mut Value) -> Result<(), ApiError> {
        let meta = object_at(value, "metadata");
        if !target.resource.namespaced {
            meta.remove("namespace");
            return Ok(());
        }
        if target.namespace.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let namespace = meta.entry("namespace").or_insert_with(|| json!(target.namespace));
        if namespace == "" {
            *namespace = json!(target.namespace);
        }
        if *namespace != *target.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let name = meta.get("name").and_then(Value::as_str).unwrap_or_default();
        if !target.name.is_empty() && !name.is_empty() && name != target.name {
            return Err(ApiError::bad_request(
                "the name of the object does not match the name on the URL",
            ));
        }
        Ok(())
    }

    /// New objects need a namespace that is there to stay.
    fn check_namespace(&self, target: &Target, value: &Value) -> Result<(), ApiError> {
        if !target.resource.namespaced {
            return Ok(());
        }
        let namespace = &target.namespace;
        let found = self.store.get("namespaces", &Key::new("", namespace));
        let found = found.ok_or_else(|| ApiError::not_found("namespaces", "", namespace))?;
        if found
            .fields
            .iter()
            .any(|(path, phase)| *path == "status.phase" && **phase == *"Terminating")
        {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let resource = &target.resource;
            return Err(ApiError::forbidden(&resource.plural, &resource.group, name, &why));
        }
        Ok(())
    }

    /// Custom resources are not created while their definition is going.
    fn check_definition(&self, resource: &Resource) -> Result<(), ApiError> {
        if !resource.is_custom() {
            return Ok(());
        }
        let definition = self.store.get(crd::DEFINITIONS, &Key::new("", &resource.id));
        if definition.is_some_and(|definition| definition.is_being_deleted) {
            return Err(ApiError::not_allowed_now(
                "create not allowed while custom resource definition is terminating",
            ));
        }
        Ok(())
    }

    /// A pod runs as somebody who exists, and whose token it gets.
    fn admit_service_account(&self, target: &Target, pod: &mut Value) -> Result<(), ApiError> {
        if !target.resource.is("", "pods") {
            return Ok(());
        }
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        let namespace = &target.namespace;
        if let Some(account) = self.store.get("serviceaccounts", &Key::new(namespace, account)) {
            pod::mount_token(pod, &account.value());
            return Ok(());
        }
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!(
            "error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found"
        );
        Err(ApiError::forbidden("pods", "", name, &why))
    }

    /// Replaces an object by what the client sent.
    pub fn update(
        &self,
        target: &Target,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let warnings = strategy::decode(&target.resource, &mut value, options.validation)?;
        self.check_place(target, &mut value)?;
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        if name != target.name {
            let message = format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            );
            return Err(ApiError::bad_request(message));
        }
        let mut outcome = self.change(target, options, false, |_| Ok(value.clone()))?;
        outcome.warnings = warnings;
        Ok(outcome)
    }

    /// Applies a patch of any type; server-side apply may create the object.
    pub fn patch(
        &self,
        target: &Target,
        patch: &patch::Patch,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let resource = &target.resource;
        if let patch::Patch::Apply(applied) = patch {
            return self.apply(target, applied.clone(), options);
        }
        let mut warnings = Vec::new();
        let mut outcome = self.change(target, options, false, |old| {
            let mut new = patch.apply_to(old, resource)?;
            warnings = strategy::decode(resource, &mut new, options.validation)?;
            if new["metadata"]["name"] != old["metadata"]["name"] {
                return Err(ApiError::bad_request("the name of the object may not be changed"));
            }
            Ok(new)
        })?;
        outcome.warnings = warnings;
        Ok(outcome)
    }

    fn apply(
        &self,
        target: &Target,
        mut applied: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let resource = &target.resource;
        let warnings = strategy::decode(resource, &mut applied, options.validation)?;
        self.check_place(target, &mut applied)?;
        object_at(&mut applied, "metadata").insert("name".into(), json!(target.name));
        if applied["metadata"]["managedFields"].as_array().is_some_and(|list| !list.is_empty()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        for _ in 0..ATTEMPTS_MAX {
            let exists = self.store.get(&resource.id, &target.key()).is_some();
            if !exists && !target.subresource.is_empty() {
                return Err(target.not_found());
            }
            let result = if exists {
                self.change(target, options, true, |old| {
                    ownership::apply(old, &applied, target, options)
                })
            } else {
                self.may_create(target, options)?;
                self.create_applied(target, &applied, options)
            };
            match result {
                // Created or deleted by somebody else in between.
                Err(error) if error.is_already_exists() || (exists && error.is_not_found()) => {}
                Err(error) => return Err(error),
                Ok(mut outcome) => {
                    outcome.warnings = warnings;
                    return Ok(outcome);
                }
            }
        }
        Err(target.stale())
    }

    /// Who may patch may not yet create by it.
    fn may_create(&self, target: &Target, options: &WriteOptions) -> Result<(), ApiError> {
        let Some(user) = &options.user else { return Ok(()) };
        let asked = Attributes {
            verb: "create".to_owned(),
            namespace: target.namespace.clone(),
            group: target.resource.group.to_string(),
            version: target.resource.version.to_string(),
            resource: target.resource.plural.to_string(),
            name: target.name.clone(),
            ..Attributes::default()
        };
        self.authorize(user, &asked)
    }

    fn create_applied(
        &self,
        target: &Target,
        applied: &Value,
        options: &WriteOptions,
    ) -> Result<Outcome, ApiError> {
        let mut value = applied.clone();
        if let Some(uid) = value["metadata"]["uid"].as_str() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(target.conflict(&why));
        }
        let managed = ownership::first_application(applied, &target.resource, &options.manager);
        value["metadata"]["managedFields"] = managed;
        let object = self.create_named(
            target,
            value,
            &WriteOptions { manager: String::new(), ..options.clone() },
        )?;
        Ok(Outcome { object, created: true, deleted: false, warnings: Vec::new() })
    }

    /// Reads, computes and writes until nobody comes in between. `owned`: the computed
    /// object already says who manages what.
    fn change(
        &self,
        target: &Target,
        options: &WriteOptions,
        owned: bool,
        mut compute: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Outcome, ApiError> {
        let resource = &target.resource;
        for _ in 0..ATTEMPTS_MAX {
            let current = self.get(target)?;
            let mut old = current.value();
            convert::from_storage(resource, &mut old);
            let mut new = compute(&old)?;
            let based_on = self.check_preconditions(target, &old, &new)?;
            strategy::prepare_update(target, &mut new, &old);
            let errors = strategy::validate_update(target, &new, &old);
            if !errors.is_empty() {
                return Err(target.invalid(&target.name, &errors));
            }
            self.check_escalation(target, &new, Some(&old), options)?;
            if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
                crd::set_conditions(&mut new, &self.catalog());
            }
            if !owned {
                ownership::record(
                    Some(&old),
                    &mut new,
                    resource,
                    &options.manager,
                    &target.subresource,
                );
            }
            let _services = self.allocate(target, &mut new, Some(&old))?;
            if same(&new, &old) {
                return Ok(unchanged(current));
            }
            if *resource.id != *"namespaces" || target.subresource.is_empty() {
                strategy::raise_generation(resource, &mut new, &old);
            }
            convert::to_storage(resource, &mut new);
            if options.dry_run {
                let object = dry_object(&mut new, resource);
                return Ok(unchanged(object));
            }
            let finished = strategy::is_finished(resource, &new);
            let written = self.store.update(
                &resource.id,
                current.resource_version,
                &mut new,
                resource.indexed,
            );
            match written {
                Ok(object) if finished => return self.remove(target, object),
                Ok(object) => {
                    self.after_write(resource, &new);
                    return Ok(unchanged(object));
                }
                Err(Refused::Missing) => return Err(target.not_found()),
                Err(Refused::Unwritten) => return Err(unwritten()),
                Err(_) if based_on => return Err(target.stale()),
                Err(_) => {}
            }
        }
        Err(target.stale())
    }

    /// Gives Services their addresses and ports. The guard keeps others from taking them too.
    fn allocate(
        &self,
        target: &Target,
        value: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<MutexGuard<'_, service::Allocations>>, ApiError> {
        if !target.resource.is("", "services") || !target.subresource.is_empty() {
            return Ok(None);
        }
        let mut allocations = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        allocations.catch_up(&self.store);
        let errors = service::allocate(value, old, &allocations);
        if !errors.is_empty() {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            return Err(target.invalid(name, &errors));
        }
        Ok(Some(allocations))
    }

    /// Whether the client named the version it started from, which must be the current one.
    fn check_preconditions(
        &self,
        target: &Target,
        old: &Value,
        new: &Value,
    ) -> Result<bool, ApiError> {
        let (old, new) = (&old["metadata"], &new["metadata"]);
        if let Some(uid) = new["uid"].as_str().filter(|uid| !uid.is_empty())
            && new["uid"] != old["uid"]
        {
            let actual = old["uid"].as_str().unwrap_or_default();
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}"
            );
            return Err(target.conflict(&why));
        }
        let named = new["resourceVersion"].as_str().filter(|v| !v.is_empty() && *v != "0");
        if named.is_some() && new["resourceVersion"] != old["resourceVersion"] {
            return Err(target.stale());
        }
        Ok(named.is_some())
    }

    /// Assigns a pod to a node.
    pub fn bind(
        &self,
        target: &Target,
        binding: &Value,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        if node.is_empty() {
            let error = FieldError::required("target.name", "name of the node");
            return Err(ApiError::invalid("Binding", "", &target.name, &[error]));
        }
        let target = Target { subresource: "binding".into(), ..target.clone() };
        self.change(&target, options, false, |old| {
            let bound = old["spec"]["nodeName"].as_str().unwrap_or_default();
            if !bound.is_empty() {
                let why = format!("pod {} is already assigned to node \"{bound}\"", target.name);
                return Err(target.conflict(&why));
            }
            if old["metadata"]["deletionTimestamp"].is_string() {
                let why =
                    format!("pod {} is being deleted, cannot be assigned to a host", target.name);
                return Err(target.conflict(&why));
            }
            let mut new = old.clone();
            new["spec"]["nodeName"] = json!(node);
            strategy::set_condition(&mut new["status"], "PodScheduled", "True", "", "");
            Ok(new)
        })?;
        Ok(())
    }

    pub fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Outcome, ApiError> {
        let resource = &target.resource;
        for _ in 0..ATTEMPTS_MAX {
            let current = self.get(target)?;
            let mut value = current.value();
            self.check_delete(target, options, &current)?;
            let Some(verdict) = strategy::begin_deletion(resource, &mut value, options) else {
                // Going already, and no sooner for being asked again.
                return Ok(unchanged(current));
            };
            if options.dry_run {
                return Ok(unchanged(current));
            }
            let base = current.resource_version;
            let result = match verdict {
                strategy::Deletion::Now => {
                    match self.store.delete(&resource.id, &target.key(), base) {
                        Ok(object) => {
                            self.after_delete(resource, &object);
                            Ok(Outcome {
                                object,
                                created: false,
                                deleted: true,
                                warnings: Vec::new(),
                            })
                        }
                        Err(refused) => Err(refused),
                    }
                }
                strategy::Deletion::Pending => self
                    .store
                    .update(&resource.id, base, &mut value, resource.indexed)
                    .map(unchanged),
            };
            match result {
                Ok(outcome) => return Ok(outcome),
                Err(Refused::Missing) => return Err(target.not_found()),
                Err(Refused::Unwritten) => return Err(unwritten()),
                Err(_) => {}
            }
        }
        Err(target.stale())
    }

    fn check_delete(
        &self,
        target: &Target,
        options: &DeleteOptions,
        current: &Object,
    ) -> Result<(), ApiError> {
        if let Some(uid) = &options.uid
            && **uid != *current.uid
        {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                current.uid
            );
            return Err(target.conflict(&why));
        }
        if let Some(version) = &options.resource_version
            && *version != current.resource_version.to_string()
        {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
                current.resource_version
            );
            return Err(target.conflict(&why));
        }
        let permanent = ["default", "kube-system", "kube-public"].contains(&target.name.as_str());
        if *target.resource.id == *"namespaces" && permanent {
            let why = "this namespace may not be deleted";
            return Err(ApiError::forbidden("namespaces", "", &target.name, why));
        }
        Ok(())
    }

    /// Deletes everything that is selected; gives what it found.
    pub fn delete_collection(
        &self,
        target: &Target,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Listed, ApiError> {
        let listed = self.list(target, list)?;
        for item in &listed.items {
            let one = Target {
                namespace: item.key.namespace.to_string(),
                name: item.key.name.to_string(),
                ..target.clone()
            };
            match self.delete(&one, options) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(listed)
    }

    /// Takes away an object whose last finalizer is gone.
    fn remove(&self, target: &Target, object: Arc<Object>) -> Result<Outcome, ApiError> {
        let resource = &target.resource;
        match self.store.delete(&resource.id, &object.key, object.resource_version) {
            Ok(last) => {
                self.after_delete(resource, &last);
                Ok(Outcome { object: last, created: false, deleted: true, warnings: Vec::new() })
            }
            // Somebody wrote in between; that write finishes it, or a later one.
            Err(_) => Ok(unchanged(object)),
        }
    }

    fn after_write(&self, resource: &Resource, value: &Value) {
        if *resource.id == *CLUSTER_ROLES {
            self.aggregate_cluster_roles();
        }
        if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
            crd::serve(self, value);
        }
        if resource.is("", "namespaces") && value["status"]["phase"] == "Active" {
            self.furnish_namespace(value["metadata"]["name"].as_str().unwrap_or_default());
        }
    }

    fn after_delete(&self, resource: &Resource, last: &Object) {
        if *resource.id == *CLUSTER_ROLES {
            self.aggregate_cluster_roles();
        }
        if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
            crd::withdraw(self, &last.value());
        }
    }

    /// What every namespace has, from the start and again when somebody removes it.
    pub(super) fn furnish_namespace(&self, namespace: &str) {
        let options = WriteOptions::by("kube-controller-manager");
        let furniture = [
            ("serviceaccounts", json!({ "metadata": { "name": "default" } })),
            (
                "configmaps",
                json!({ "metadata": { "name": "kube-root-ca.crt" }, "data": { "ca.crt": self.ca_pem } }),
            ),
        ];
        for (id, value) in furniture {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            let Ok(target) = self.target(id, namespace, "") else { continue };
            if self.store.get(id, &Key::new(namespace, name)).is_none() {
                // It exists already when two requests do this at once.
                let _ = self.create(&target, value, &options);
            }
        }
    }
}

/// The disk is full, most likely.
fn unwritten() -> ApiError {
    ApiError::internal("the write could not be written down; the API server's log says why")
}

/// Equal but for bookkeeping that every write would touch.
fn same(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    let fields_equal = new.len() == old.len()
        && new.iter().all(|(name, value)| name == "metadata" || old.get(name) == Some(value));
    let meta = |object: &serde_json::Map<String, Value>| {
        let mut meta = object.get("metadata").cloned().unwrap_or_default();
        if let Some(map) = meta.as_object_mut() {
            map.remove("resourceVersion");
            for entry in
                map.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten()
            {
                entry["time"] = Value::Null;
            }
        }
        meta
    };
    fields_equal && meta(new) == meta(old)
}

fn unchanged(object: Arc<Object>) -> Outcome {
    Outcome { object, created: false, deleted: false, warnings: Vec::new() }
}

/// What a write would have made; a dry run gives no new resource version.
fn dry_object(value: &mut Value, resource: &Resource) -> Arc<Object> {
    let version = value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok());
    let mut object = Object::new(value, version.unwrap_or(0), resource.indexed);
    if version.is_none() {
        object_at(value, "metadata").remove("resourceVersion");
        object.json = value.to_string().into();
    }
    object.into()
}

/// Where a chunked list goes on.
struct ContinueToken {
    version: u64,
    snapshot: u64,
    next: Key,
}

impl ContinueToken {
    fn to_text(&self) -> String {
        use base64::Engine as _;
        let token = json!({ "v": "lab", "rv": self.version, "snapshot": self.snapshot,
            "namespace": self.next.namespace, "name": self.next.name });
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn parse(text: &str) -> Result<Self, ApiError> {
        use base64::Engine as _;
        let parse = || {
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
            let token: Value = serde_json::from_slice(&bytes).ok()?;
            let next = Key::new(token["namespace"].as_str()?, token["name"].as_str()?);
            Some(Self {
                version: token["rv"].as_u64()?,
                snapshot: token["snapshot"].as_u64()?,
                next,
            })
        };
        parse().ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: it is not one that this server gave")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::patch::Patch;
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
    use k8s_openapi::api::batch::v1::Job;
    use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use proptest::prelude::*;

    const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

    /// A valid object of each kind that the server looks into.
    fn samples() -> Vec<(&'static str, Value)> {
        vec![
            (
                "pods",
                json!({ "metadata": { "name": "o", "labels": { "a": "b" }, "finalizers": ["x.io/y"],
                    "ownerReferences": [{ "apiVersion": "v1", "kind": "K", "name": "n", "uid": "u" }] },
                "spec": { "nodeName": "n", "volumes": [{ "name": "v", "emptyDir": {} }], "tolerations": [{ "key": "k" }],
                    "containers": [{ "name": "c", "image": "i", "env": [{ "name": "E", "valueFrom": { "fieldRef": { "fieldPath": "x" } } }],
                        "ports": [{ "containerPort": 80 }], "resources": { "limits": { "cpu": "1" } },
                        "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
                        "readinessProbe": { "httpGet": { "port": 80 } } }] } }),
            ),
            (
                "services",
                json!({ "metadata": { "name": "o" }, "spec": { "selector": { "a": "b" },
                "ports": [{ "name": "p", "port": 80, "targetPort": "web" }] } }),
            ),
            (
                "secrets",
                json!({ "metadata": { "name": "o" }, "data": { "k": "dg==" }, "stringData": { "s": "t" } }),
            ),
            (
                "configmaps",
                json!({ "metadata": { "name": "o", "annotations": { "a": "b" } }, "data": { "k": "v" } }),
            ),
            (
                "nodes",
                json!({ "metadata": { "name": "o" }, "spec": { "podCIDRs": ["10.0.0.0/24"] },
                "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }], "conditions": [{ "type": "Ready", "status": "True" }] } }),
            ),
            (
                DEFINITIONS,
                json!({ "metadata": { "name": "os.x.io" }, "spec": { "group": "x.io", "scope": "Namespaced",
                "names": { "plural": "os", "kind": "O", "shortNames": ["o"] },
                "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                    "additionalPrinterColumns": [{ "name": "C", "type": "string", "jsonPath": ".spec.a" }],
                    "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": { "type": "object",
                        "properties": { "a": { "type": "string", "default": "x", "enum": ["x"] } } } } } } }] } }),
            ),
            (
                "deployments.apps",
                json!({ "metadata": { "name": "o" }, "spec": { "replicas": 1, "selector": { "matchLabels": { "a": "b" } },
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } }, "template": template() } }),
            ),
            (
                "daemonsets.apps",
                json!({ "metadata": { "name": "o" }, "spec": { "selector": { "matchLabels": { "a": "b" } },
                "updateStrategy": { "type": "RollingUpdate" }, "template": template() } }),
            ),
            (
                "statefulsets.apps",
                json!({ "metadata": { "name": "o" }, "spec": { "serviceName": "s",
                "selector": { "matchExpressions": [{ "key": "a", "operator": "In", "values": ["b"] }] }, "template": template() } }),
            ),
            (
                "jobs.batch",
                json!({ "metadata": { "name": "o" }, "spec": { "completions": 2, "completionMode": "Indexed",
                "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } } }),
            ),
            ("os.x.io", json!({ "metadata": { "name": "o" }, "spec": { "a": "x" } })),
        ]
    }

    fn template() -> Value {
        json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } })
    }

    /// Every pointer into a value, the root not included.
    fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
        let children: Vec<(String, &Value)> = match value {
            Value::Object(map) => {
                map.iter().map(|(key, inner)| (key.replace('/', "~1"), inner)).collect()
            }
            Value::Array(items) => {
                items.iter().enumerate().map(|(i, inner)| (i.to_string(), inner)).collect()
            }
            _ => Vec::new(),
        };
        for (key, inner) in children {
            let path = format!("{at}/{key}");
            pointers(inner, &path, into);
            into.push(path);
        }
    }

    fn odd_value() -> impl Strategy<Value = Value> {
        prop::sample::select(vec![
            Value::Null,
            json!(true),
            json!(-1),
            json!(1.5),
            json!(""),
            json!("x"),
            json!("Not A Name"),
            json!([]),
            json!([null]),
            json!(["x"]),
            json!([{}]),
            json!({}),
            json!({ "a": null }),
            json!({ "name": "x" }),
            json!({ "$patch": "delete" }),
            json!({ "$patch": "replace" }),
            json!([{ "$patch": "replace" }]),
        ])
    }

    /// What a typed client reads must be what it expects.
    fn reads_as_its_type(id: &str, object: &Object) -> Result<(), serde_json::Error> {
        match id {
            "pods" => serde_json::from_slice::<Pod>(&object.json).map(drop),
            "services" => serde_json::from_slice::<Service>(&object.json).map(drop),
            "secrets" => serde_json::from_slice::<Secret>(&object.json).map(drop),
            "configmaps" => serde_json::from_slice::<ConfigMap>(&object.json).map(drop),
            "nodes" => serde_json::from_slice::<Node>(&object.json).map(drop),
            "deployments.apps" => serde_json::from_slice::<Deployment>(&object.json).map(drop),
            "daemonsets.apps" => serde_json::from_slice::<DaemonSet>(&object.json).map(drop),
            "statefulsets.apps" => serde_json::from_slice::<StatefulSet>(&object.json).map(drop),
            "jobs.batch" => serde_json::from_slice::<Job>(&object.json).map(drop),
            DEFINITIONS => {
                serde_json::from_slice::<CustomResourceDefinition>(&object.json).map(drop)
            }
            _ => Ok(()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]
        /// Whatever is sent, the answer is an object that clients can read, or a refusal.
        #[test]
        fn odd_input_is_stored_well_or_refused(
            which in 0_usize..11,
            place in any::<prop::sample::Index>(),
            odd in odd_value(),
            way in 0_u8..6,
        ) {
            let api = Api::new(String::new());
            let options = WriteOptions::by("test");
            let namespaces = api.target("namespaces", "", "").unwrap();
            api.create(&namespaces, json!({ "metadata": { "name": "n" } }), &options).unwrap();
            let samples = samples();
            let definition = samples.iter().find(|(id, _)| *id == DEFINITIONS).unwrap().1.clone();
            let (id, sample) = &samples[which];
            if *id == "os.x.io" {
                let target = api.target(DEFINITIONS, "", "").unwrap();
                api.create(&target, definition, &options).unwrap();
            }
            let mut all = Vec::new();
            pointers(sample, "", &mut all);
            let pointer = place.get(&all);
            let mut changed = sample.clone();
            *changed.pointer_mut(pointer).unwrap() = odd.clone();

            let resource = api.catalog().by_id(id).unwrap().clone();
            let namespace = if resource.namespaced { "n" } else { "" };
            let collection = api.target(id, namespace, "").unwrap();
            let name = sample["metadata"]["name"].as_str().unwrap();
            let target = api.target(id, namespace, name).unwrap();
            if way > 0 {
                api.create(&collection, sample.clone(), &options).unwrap();
            }
            let result = match way {
                0 => api.create(&collection, changed, &options),
                1 => api.update(&target, changed, &options),
                2 => api.patch(&target, &Patch::Merge(changed), &options),
                3 => api.patch(&target, &Patch::Strategic(changed), &options),
                4 => api.patch(&target, &Patch::Apply(changed), &options),
                _ => {
                    let patch = json!([{ "op": "replace", "path": pointer, "value": odd }]);
                    api.patch(&target, &Patch::Json(serde_json::from_value(patch).unwrap()), &options)
                }
            };
            if let Ok(outcome) = result {
                let read = reads_as_its_type(id, &outcome.object);
                prop_assert!(read.is_ok(), "{read:?} in {}", String::from_utf8_lossy(&outcome.object.json));
            }
            let _ = api.delete(&target, &DeleteOptions::default());
        }
    }
}
