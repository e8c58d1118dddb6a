"""
The clinical terms of `medical_report`: findings and devices of radiology reports, with their synonyms.

Our own list, under the Apache-2.0 license of this project. It follows no terminology and claims no completeness. It
holds what is found or put in; anatomy counts only where it is called normal or abnormal (`STRUCTURES`).

A concept's own name and each synonym, separated by commas, are spellings of it. The plural of the last word need not
be written where it is regular ("nodules", "opacities", "abscesses"). Spelling is matched word by word in any case,
hyphens are blanks, and where several spellings match at one place the one with most words wins: "joint effusion" is
not the "effusion" of the pleura. A word that stands alone is read as in a report on a chest image.
"""

FINDINGS = {
    "lungs and pleura": {
        "pleural effusion": "effusion, pleural fluid, pleural fluid collection, hydrothorax, parapneumonic effusion",
        "pneumothorax": "pneumothoraces, pneumothoraxes, collapsed lung, hydropneumothorax",
        "pneumonia": "pneumonias, bronchopneumonia, pneumonic process, pneumonic infiltrate, infectious process",
        "aspiration": "aspiration pneumonia, aspiration pneumonitis",
        "consolidation": "airspace consolidation, air space consolidation, consolidative opacity, "
        "consolidative change",
        "lung opacity": "opacity, opacification, airspace opacity, air space opacity, airspace disease, "
        "air space disease, airspace opacification, parenchymal opacity, pulmonary opacity, infiltrate, "
        "pulmonary infiltrate, infiltration, hazy opacity, streaky opacity, patchy opacity, lung density",
        "ground glass opacity": "ground glass, ground glass opacification, ground glass attenuation, "
        "ground glass density, groundglass opacity",
        "interstitial opacity": "interstitial disease, interstitial lung disease, interstitial markings, "
        "interstitial thickening, interstitial prominence, interstitial infiltrate, interstitial changes, "
        "reticular opacity, reticulation, septal thickening, kerley b line",
        "atelectasis": "atelectases, atelectatic change, atelectatic opacity, subsegmental atelectasis, "
        "discoid atelectasis, linear atelectasis, volume loss, lung collapse, lobar collapse",
        "pulmonary edema": "edema, oedema, pulmonary oedema, interstitial edema, alveolar edema, fluid overload, "
        "volume overload",
        "pulmonary vascular congestion": "vascular congestion, venous congestion, pulmonary congestion, "
        "pulmonary venous congestion, vascular engorgement, cephalization, pulmonary venous hypertension",
        "pulmonary nodule": "nodule, lung nodule, nodular opacity, nodular density, micronodule, nodularity",
        "granuloma": "granulomas, granulomata, calcified granuloma, granulomatous disease, granulomatous change, "
        "granulomatous process, calcified nodule",
        "lung mass": "mass, pulmonary mass, mass lesion",
        "cavitation": "cavitary lesion, cavitary disease, cavitary mass, cavitary nodule",
        "emphysema": "emphysematous change, bulla, bullae, bullous disease, bullous change, bleb",
        "chronic obstructive pulmonary disease": "copd, obstructive lung disease, obstructive pulmonary disease",
        "hyperinflation": "hyperexpansion, hyperexpanded, hyperinflated, overinflation, hyperaeration, air trapping, "
        "flattened diaphragm, flattening of the diaphragm, flattened hemidiaphragm",
        "low lung volumes": "low lung volume, hypoinflation, hypoinflated, hypoventilation, decreased lung volumes, "
        "small lung volumes, shallow inspiration, poor inspiration",
        "pulmonary fibrosis": "fibrosis, fibrotic change, honeycombing, fibrotic scarring",
        "scarring": "scar, fibrotic scar, pleuroparenchymal scarring, parenchymal scarring",
        "bronchiectasis": "bronchiectases, bronchiectatic change",
        "bronchial wall thickening": "peribronchial thickening, peribronchial cuffing, bronchial thickening, "
        "airway thickening, bronchitis",
        "pleural thickening": "pleural scarring, thickened pleura",
        "pleural plaque": "pleural calcification, calcified pleural plaque",
        "costophrenic angle blunting": "blunting of the costophrenic angle, blunted costophrenic angle, "
        "blunting of the costophrenic sulcus, costophrenic blunting, blunting of the costophrenic",
        "empyema": "empyemas, pyothorax",
        "hemothorax": "haemothorax, hemothoraces",
        "pneumomediastinum": "mediastinal air, mediastinal emphysema",
        "subcutaneous emphysema": "subcutaneous air, subcutaneous gas, soft tissue gas, soft tissue emphysema",
        "tuberculosis": "tb, tuberculous disease",
        "lung cancer": "bronchogenic carcinoma, lung carcinoma, lung malignancy",
        "elevated hemidiaphragm": "elevated diaphragm, elevation of the hemidiaphragm, hemidiaphragm elevation, "
        "diaphragmatic elevation, elevation of the right hemidiaphragm, elevation of the left hemidiaphragm, "
        "elevated right hemidiaphragm, elevated left hemidiaphragm, eventration",
        "lung abnormality": "pulmonary abnormality, cardiopulmonary abnormality, cardiopulmonary disease, "
        "cardiopulmonary process, pulmonary process, pulmonary disease, lung disease, "
        "airspace abnormality, parenchymal abnormality, intrathoracic process, intrathoracic abnormality",
    },
    "heart and vessels": {
        "cardiomegaly": "enlarged heart, cardiac enlargement, enlarged cardiac silhouette, heart enlargement, "
        "enlargement of the heart, enlargement of the cardiac silhouette, enlarged cardiomediastinal silhouette, "
        "enlarged heart size, cardiac hypertrophy",
        "heart failure": "congestive heart failure, chf, cardiac failure, congestive failure, cardiac decompensation",
        "pericardial effusion": "pericardial fluid, hemopericardium",
        "mediastinal widening": "widened mediastinum, mediastinal enlargement, widening of the mediastinum",
        "mediastinal mass": "mediastinal lesion",
        "hilar enlargement": "hilar prominence, enlarged hilum, enlarged hila, hilar fullness, prominent hilum, "
        "hilar mass",
        "lymphadenopathy": "adenopathy, lymphadenopathies, adenopathies, enlarged lymph node, hilar adenopathy, "
        "hilar lymphadenopathy, mediastinal adenopathy, mediastinal lymphadenopathy, lymph node enlargement",
        "aortic aneurysm": "aneurysm of the aorta, aneurysmal aorta, thoracic aortic aneurysm, "
        "abdominal aortic aneurysm",
        "aortic dilatation": "aortic dilation, aortic ectasia, ectatic aorta, dilated aorta, ectasia of the aorta",
        "aortic dissection": "dissection, dissection of the aorta",
        "aortic tortuosity": "tortuous aorta, unfolded aorta, tortuosity of the aorta, uncoiled aorta, "
        "unfolding of the aorta, unfolding of the thoracic aorta, tortuous thoracic aorta, "
        "tortuosity of the thoracic aorta",
        "atherosclerosis": "atherosclerotic calcification, atherosclerotic disease, atherosclerotic change, "
        "arteriosclerosis, aortic calcification, aortic atherosclerosis, vascular calcification, "
        "calcified aorta, calcification of the aorta, arterial calcification, atherosclerotic vascular calcification",
        "coronary artery calcification": "coronary calcification, coronary artery disease",
        "pulmonary embolism": "pulmonary emboli, pulmonary embolus, pe, pulmonary thromboembolism",
        "pulmonary hypertension": "pulmonary arterial hypertension, enlarged pulmonary artery",
        "thrombosis": "thrombus, thrombi, venous thrombosis, deep vein thrombosis, dvt, blood clot",
        "stenosis": "stenoses, narrowing, stricture, vascular stenosis",
        "aneurysm": "aneurysmal dilatation, pseudoaneurysm, intracranial aneurysm, cerebral aneurysm",
    },
    "abdomen and pelvis": {
        "ascites": "free fluid, intraperitoneal fluid, peritoneal fluid",
        "pneumoperitoneum": "free air, free intraperitoneal air, free gas, intraperitoneal air, "
        "free intraperitoneal gas, subdiaphragmatic air, air under the diaphragm",
        "bowel obstruction": "small bowel obstruction, large bowel obstruction, intestinal obstruction, sbo",
        "ileus": "paralytic ileus",
        "dilated bowel": "dilated bowel loop, dilated loops of bowel, bowel dilatation, bowel distention, "
        "dilated small bowel, dilated colon, dilated loops of small bowel, distended bowel, gaseous distention",
        "bowel wall thickening": "colonic wall thickening, wall thickening, thickened bowel wall",
        "colitis": "inflammatory bowel disease",
        "diverticulitis": "",
        "diverticulosis": "diverticular disease, diverticula, diverticulum, colonic diverticula",
        "appendicitis": "inflamed appendix, dilated appendix",
        "gallstone": "cholelithiasis, gall stone, cholecystolithiasis",
        "cholecystitis": "gallbladder wall thickening, pericholecystic fluid",
        "biliary dilatation": "biliary dilation, dilated bile duct, bile duct dilatation, dilated common bile duct, "
        "intrahepatic biliary dilatation, ductal dilatation, biliary ductal dilatation",
        "hepatomegaly": "enlarged liver, liver enlargement",
        "hepatic steatosis": "fatty liver, steatosis, fatty infiltration, fatty infiltration of the liver",
        "cirrhosis": "cirrhotic liver, nodular liver",
        "liver lesion": "hepatic lesion, liver mass, hepatic mass, hepatocellular carcinoma, liver metastasis, "
        "liver metastases, hepatic metastases, hepatic hemangioma, liver cyst, hepatic cyst",
        "splenomegaly": "enlarged spleen, splenic enlargement",
        "pancreatitis": "peripancreatic stranding, peripancreatic fluid",
        "pancreatic mass": "pancreatic lesion, pancreatic cancer, pancreatic carcinoma, pancreatic cyst",
        "adrenal nodule": "adrenal mass, adrenal adenoma, adrenal lesion",
        "kidney stone": "renal stone, nephrolithiasis, renal calculus, renal calculi, ureteral stone, "
        "ureteral calculus, urolithiasis, ureterolithiasis",
        "hydronephrosis": "hydroureteronephrosis, hydroureter, pelvicaliectasis, obstructive uropathy",
        "renal cyst": "kidney cyst, cortical cyst",
        "renal mass": "kidney mass, renal lesion, renal cell carcinoma, renal tumor, renal tumour",
        "pyelonephritis": "",
        "bladder wall thickening": "thickened bladder wall",
        "ovarian cyst": "adnexal cyst, ovarian mass, adnexal mass",
        "uterine fibroid": "fibroid, leiomyoma, leiomyomas",
        "prostatic enlargement": "enlarged prostate, prostatomegaly, prostatic hypertrophy",
        "hiatal hernia": "hiatus hernia",
        "hernia": "inguinal hernia, ventral hernia, umbilical hernia, incisional hernia, diaphragmatic hernia",
        "constipation": "fecal loading, stool burden, fecal impaction, retained stool",
        "fat stranding": "mesenteric stranding, inflammatory stranding, stranding",
        "volvulus": "",
        "intussusception": "",
    },
    "head and neck": {
        "intracranial hemorrhage": "intracranial haemorrhage, intracranial bleed, intracerebral hemorrhage, "
        "intraparenchymal hemorrhage, parenchymal hemorrhage, brain hemorrhage, cerebral hemorrhage, "
        "intraventricular hemorrhage, extra axial hemorrhage",
        "subdural hematoma": "subdural hemorrhage, subdural haematoma, subdural collection, sdh",
        "epidural hematoma": "epidural hemorrhage, extradural hematoma, epidural haematoma",
        "subarachnoid hemorrhage": "subarachnoid haemorrhage, subarachnoid blood, sah",
        "infarct": "infarction, stroke, ischemic stroke, acute infarct, lacunar infarct, cerebral infarct, "
        "cerebral infarction, ischemic infarct, acute ischemia, territorial infarct",
        "small vessel disease": "small vessel ischemic disease, chronic microvascular change, microangiopathy, "
        "white matter disease, white matter hyperintensity, chronic small vessel disease, "
        "chronic microvascular ischemic change, leukoaraiosis, microvascular disease",
        "brain mass": "intracranial mass, brain tumor, brain tumour, glioma, glioblastoma, meningioma, "
        "intracranial lesion, brain lesion, cerebral mass, brain metastases, brain metastasis",
        "cerebral edema": "brain edema, vasogenic edema, cytotoxic edema, perilesional edema",
        "midline shift": "shift of the midline, shift of midline structures",
        "mass effect": "",
        "hydrocephalus": "ventriculomegaly, dilated ventricle, ventricular dilatation, ventricular enlargement, "
        "enlarged ventricle",
        "brain atrophy": "cerebral atrophy, cortical atrophy, parenchymal volume loss, cerebral volume loss, "
        "generalized atrophy, cerebellar atrophy",
        "herniation": "uncal herniation, tonsillar herniation, brain herniation",
        "demyelination": "demyelinating disease, demyelinating lesion, multiple sclerosis",
        "encephalomalacia": "gliosis",
        "sinusitis": "sinus disease, mucosal thickening, sinus opacification, paranasal sinus disease",
        "mastoid effusion": "mastoiditis, mastoid opacification, fluid in the mastoid",
        "skull fracture": "calvarial fracture, fracture of the skull",
        "thyroid nodule": "thyroid lesion, thyroid mass",
        "goiter": "goitre, enlarged thyroid, thyromegaly",
        "tracheal deviation": "deviated trachea, deviation of the trachea",
    },
    "bones, joints and soft tissue": {
        "fracture": "fractured, bone fracture, displaced fracture, nondisplaced fracture, hip fracture, "
        "femoral fracture, clavicle fracture, radius fracture, humeral fracture, stress fracture",
        "rib fracture": "fracture of the rib, fractured rib, rib deformity",
        "compression fracture": "vertebral compression fracture, compression deformity, wedge fracture, "
        "vertebral fracture, wedge deformity, vertebral body height loss, vertebral compression deformity",
        "dislocation": "subluxation, dislocated, fracture dislocation",
        "osteoarthritis": "degenerative joint disease, arthritis, arthrosis, joint space narrowing, arthritic change",
        "degenerative change": "degenerative disease, spondylosis, osteophyte, osteophytosis, osteophyte formation, "
        "degenerative spurring, spurring, syndesmophyte, degenerative spondylosis, degenerative spine disease",
        "disc degeneration": "degenerative disc disease, disc space narrowing, disk degeneration, "
        "degenerative disk disease, disc desiccation, disc height loss",
        "disc herniation": "herniated disc, disc protrusion, disc bulge, disc extrusion, disk herniation, "
        "bulging disc, disk bulge",
        "spinal stenosis": "spinal canal stenosis, canal stenosis, foraminal stenosis, neural foraminal narrowing, "
        "foraminal narrowing, cord compression",
        "spondylolisthesis": "anterolisthesis, retrolisthesis",
        "scoliosis": "dextroscoliosis, levoscoliosis, spinal curvature, scoliotic curvature",
        "kyphosis": "kyphotic",
        "osteopenia": "osteoporosis, demineralization, bone demineralization, osteopenic, decreased bone density",
        "bone lesion": "lytic lesion, osseous lesion, sclerotic lesion, bony lesion, osteolytic lesion, "
        "destructive lesion, osteoblastic lesion, blastic lesion",
        "osteomyelitis": "bone infection, discitis, spondylodiscitis",
        "osteonecrosis": "avascular necrosis",
        "bone marrow edema": "marrow edema, bone bruise, bone contusion",
        "joint effusion": "knee effusion, hip effusion, elbow effusion, ankle effusion, shoulder effusion, "
        "hemarthrosis",
        "tendon tear": "rotator cuff tear, torn tendon, tendon rupture, supraspinatus tear",
        "ligament tear": "acl tear, anterior cruciate ligament tear, torn ligament, ligament rupture",
        "meniscal tear": "torn meniscus, meniscus tear",
        "tendinopathy": "tendinosis, tendinitis, tendonitis",
        "soft tissue swelling": "soft tissue edema, swelling",
        "bone abnormality": "bony abnormality, osseous abnormality, skeletal abnormality, osseous finding",
    },
    "anywhere": {
        "metastasis": "metastases, metastatic disease, metastatic lesion",
        "cancer": "malignancy, malignancies, carcinoma, neoplasm, tumor, tumour, neoplastic process, adenocarcinoma",
        "lymphoma": "",
        "abscess": "phlegmon",
        "fluid collection": "loculated fluid",
        "hematoma": "haematoma",
        "hemorrhage": "haemorrhage, bleeding, bleed",
        "cyst": "cystic lesion, cystic mass",
        "calcification": "calcific density, calcified density, calcified lesion",
        "foreign body": "foreign bodies, retained foreign body, metallic foreign body",
        "infection": "infectious disease",
        "inflammation": "inflammatory change, inflammatory process",
        "necrosis": "necrotic",
    },
    "devices and operations": {
        "endotracheal tube": "et tube, ett, endotracheal intubation, intubated",
        "tracheostomy": "tracheostomy tube, tracheotomy",
        "nasogastric tube": "ng tube, enteric tube, feeding tube, orogastric tube, dobbhoff tube, gastric tube, "
        "nasoenteric tube, og tube",
        "chest tube": "thoracostomy tube, pleural drain, pleural catheter, pigtail catheter, chest drain",
        "central venous catheter": "central line, central catheter, jugular line, jugular catheter, ij line, "
        "subclavian line, subclavian catheter, central venous line, ij catheter, cvc, venous catheter",
        "picc": "picc line, peripherally inserted central catheter",
        "port": "port a cath, portacath, port catheter, chest port, mediport, infusion port",
        "dialysis catheter": "hemodialysis catheter, tunneled catheter",
        "swan ganz catheter": "pulmonary artery catheter",
        "pacemaker": "pacer, pacemaker lead, pacer lead, pacing lead, pacing wire, cardiac pacemaker, icd, aicd, "
        "defibrillator, pacing device, cardiac device",
        "sternal wires": "sternotomy wires, sternotomy wire, sternal wire, median sternotomy, sternotomy, "
        "median sternotomy wires, midline sternotomy",
        "valve replacement": "prosthetic valve, valve prosthesis, mitral valve replacement, aortic valve replacement, "
        "prosthetic heart valve, artificial valve",
        "bypass graft": "cabg, coronary artery bypass graft, coronary bypass, bypass surgery",
        "stent": "coronary stent, biliary stent, ureteral stent, vascular stent",
        "surgical clips": "surgical clip, clips, vascular clip, cholecystectomy clips, staple, surgical staple",
        "orthopedic hardware": "hardware, internal fixation, fixation plate, pedicle screw, spinal hardware, "
        "spinal fusion, fusion hardware, intramedullary nail, surgical plate, orthopedic screw, fixation hardware",
        "joint replacement": "arthroplasty, hip replacement, knee replacement, joint prosthesis, hip prosthesis, "
        "shoulder arthroplasty, hip arthroplasty, knee arthroplasty",
        "drainage catheter": "drain, surgical drain, drainage tube, nephrostomy tube, biliary drain, "
        "percutaneous drain",
        "intra aortic balloon pump": "iabp, balloon pump",
        "ventricular shunt": "ventriculoperitoneal shunt, vp shunt, ventriculostomy catheter, shunt catheter",
        "mastectomy": "lumpectomy",
        "cholecystectomy": "",
        "lobectomy": "pneumonectomy, lung resection, wedge resection",
    },
}

# What it says of a concept that a structure is normal or not: "the heart is normal in size" states that there is no
# cardiomegaly, "the heart is enlarged" that there is. Each concept has the spellings of its structures and the words
# that make it present; "abnormal" and "abnormality" always do. A structure may speak of several concepts.
STRUCTURES = {
    "cardiomegaly": (
        "heart, heart size, cardiac size, cardiac silhouette, cardiac contour, cardiac shadow, "
        "cardiomediastinal silhouette, cardiomediastinal contour, cardio mediastinal silhouette, "
        "cardiac and mediastinal contour, cardiac and mediastinal silhouette",
        "enlarged, enlargement, large, increased, prominent",
    ),
    "mediastinal widening": (
        "mediastinum, superior mediastinum, mediastinal contour, mediastinal silhouette, "
        "cardiomediastinal silhouette, cardiomediastinal contour, cardio mediastinal silhouette, "
        "cardiac and mediastinal contour, cardiac and mediastinal silhouette",
        "widened, wide, widening, prominent",
    ),
    "hilar enlargement": (
        "hila, hilum, hilar contour, hilar structure",
        "enlarged, enlargement, prominent, full",
    ),
    "pulmonary vascular congestion": (
        "pulmonary vascularity, pulmonary vasculature, pulmonary vascular marking, pulmonary vessel, vascularity",
        "congested, engorged, increased, indistinct, prominent",
    ),
    "aortic tortuosity": ("aorta, thoracic aorta", "tortuous, unfolded, uncoiled"),
    "lung abnormality": ("lung, lung field, lung parenchyma, lung zone, pleural space", ""),
    "low lung volumes": ("lung volume, inspiratory volume", "low, decreased, diminished, reduced, small"),
    "bone abnormality": (
        "bone, bony structure, osseous structure, visualized osseous structure, skeletal structure, bony thorax, "
        "bony skeleton",
        "",
    ),
    "hepatomegaly": ("liver", "enlarged, enlargement"),
    "splenomegaly": ("spleen", "enlarged, enlargement"),
    "hydrocephalus": ("ventricular system, lateral ventricle", "dilated, enlarged, enlargement"),
}
NORMAL_WORDS = frozenset({"normal", "unremarkable", "clear", "intact"})
ABNORMAL_WORDS = frozenset({"abnormal", "abnormality", "abnormalities"})
